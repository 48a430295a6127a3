"""A broker that reads its revocation list only after the command that told it to has ended."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from device_sim.attack import list_reading, run, scene, session_cases
from device_sim.attack.capabilities import CrlFile, Feature, TimeLimits
from device_sim.attack.catalogue import CATALOGUE, pick
from device_sim.attack.issuer import Paper
from device_sim.attack.list_reading import what_was_waited_for
from device_sim.attack.raw_client import RawClient
from device_sim.attack.scene import Scene
from device_sim.attack.target import SigningRegistrar, Target
from device_sim.attack.verdict import Layer, Seen, Verdict
from tests.support.faulty_broker import Fault, faulty

_READS_AFTER = 0.3


class _Later(SigningRegistrar):
    """Its broker knows of a revocation a while after it was told to read its list."""

    def __init__(self, target: Target, seconds: float) -> None:
        super().__init__(target.issuer, CrlFile(crl_file=Path("crl.pem"), reload=("kill", "-HUP", "1")))
        self._told, self._seconds = target.registrar, seconds

    async def revoke(self, paper: Paper) -> None:
        asyncio.get_running_loop().call_later(self._seconds, lambda: asyncio.ensure_future(self._told.revoke(paper)))


def _of(target: Target, seconds: float) -> Target:
    limits = TimeLimits(revocation=0.05, revocation_p95=0.05)
    claims = target.capabilities.model_copy(update={"supports": frozenset(Feature), "limits": limits})
    return replace(target, capabilities=claims, registrar=_Later(target, seconds))


@pytest.fixture(autouse=True)
def _short_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MOST_WAITING", 10.0)
    monkeypatch.setattr(scene, "MOST_WAITING", 10.0)


@pytest.mark.parametrize(("name", "verdict"), [("5-revoked", Verdict.FAIL), ("7-resumed", Verdict.PASS)])
async def test_a_list_that_is_read_late_is_late_and_no_attack_that_succeeded(
    tmp_path: Path, name: str, verdict: Verdict
) -> None:
    """By `kill -HUP` it had let in whom a case revoked, also in cases that are not about how soon."""
    (case,) = pick(CATALOGUE, [name])
    async with faulty(tmp_path, Fault.NONE) as target:
        one = Scene(_of(target, _READS_AFTER))
        outcome = await run._tried(one, case)
        await one.close()
    assert outcome.verdict is verdict, outcome.judgement
    if verdict is Verdict.FAIL:
        assert outcome.judgement.why.endswith(" s, 0.05 s at most")
    assert one.target.waited >= _READS_AFTER
    assert "after `kill -HUP 1` had ended, for the broker to go by its revocation list" in what_was_waited_for(
        one.target
    )


async def test_a_list_that_is_never_read_is_waited_for_no_longer_than_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(list_reading, "LONGEST", 0.3)
    (case,) = pick(CATALOGUE, ["5-revoked"])
    async with faulty(tmp_path, Fault.NONE) as target:
        one = Scene(_of(target, 600.0))
        outcome = await run._tried(one, case)
        await one.close()
    assert (outcome.verdict, outcome.judgement.why) == (Verdict.FAIL, "the attack succeeded: the broker let it in")


async def test_two_of_twenty_that_are_too_slow_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty times three seconds were more than a case has: it did not come to an end."""
    took = itertools.chain((0.01, 3.0, 0.01, 2.0))

    async def cut(*_: object) -> Seen:
        return Seen(Layer.MQTT, "DISCONNECT 0x98", seconds=next(took))

    async def nobody(*_: object) -> list[RawClient]:
        return [await one.admitted(await one.device())] * 20

    monkeypatch.setattr(session_cases, "cut", cut)
    monkeypatch.setattr(session_cases, "_all_admitted", nobody)
    (case,) = pick(CATALOGUE, ["6-revoked-many"])
    async with faulty(tmp_path, Fault.NONE) as target:
        one = Scene(_of(target, 0.0))
        outcome = await run._tried(one, case)
        await one.close()
    assert (outcome.verdict, outcome.judgement.why) == (Verdict.FAIL, "after 2.0 s, 0.05 s at most")
    assert outcome.seen is not None
    assert outcome.seen.figures == "not soon: 2 of the first 4, the slowest 3000 ms after the call"
