"""What a run makes of its cases: what spoils an outcome afterwards, whom a harm is blamed on, and what is excused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from device_sim.attack import run, scene
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Case
from device_sim.attack.catalogue import CATALOGUE, pick
from device_sim.attack.good_client import Parties
from device_sim.attack.raw_client import RawClient
from device_sim.attack.scene import PATIENCE, Scene
from device_sim.attack.target import BrokenPromise, Impossible, Starved, TurnedAway
from device_sim.attack.verdict import DELIVERED, NOT_DELIVERED, OPEN, SERVED, ClosedBy, Layer, Outcome, Seen, Verdict
from device_sim.attack.watcher import Watcher
from tests.support.faulty_broker import Fault, faulty


@pytest.fixture(autouse=True)
def _short_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else this machine does, it is the broker that is judged."""
    monkeypatch.setattr(run, "MOST_WAITING", 10.0)
    monkeypatch.setattr(scene, "MOST_WAITING", 10.0)


async def served(_scene: Scene) -> Seen:
    return Seen(Layer.MQTT, SERVED, "", ClosedBy.NOBODY)


def named(outcomes: list[Outcome]) -> dict[str, Outcome]:
    return {outcome.name: outcome for outcome in outcomes}


@pytest.mark.parametrize(("fault", "verdict"), [(Fault.NONE, Verdict.PASS), (Fault.FORGETS, Verdict.FAIL)])
async def test_who_is_revoked_is_tried_once_more_when_all_is_over(
    tmp_path: Path, fault: Fault, verdict: Verdict
) -> None:
    async with faulty(tmp_path, fault) as target:
        claims = target.capabilities.model_copy(update={"supports": frozenset(Feature)})
        held = replace(target, capabilities=claims)
        found = named(await run.run(held, pick(CATALOGUE, ["5-revoked"]), lambda _: None))["5-revoked"]
    assert found.verdict is verdict, found.judgement
    again = "let in again when all cases had been tried: mqtt CONNACK 0x00"
    assert found.judgement.why == ("" if verdict is Verdict.PASS else again)


async def test_a_harm_of_the_cases_that_wait_is_not_blamed_on_the_first_that_does_not(tmp_path: Path) -> None:
    async def kills(here: Scene) -> Seen:
        client = await here.dialled(await here.device())
        await client.send(b"\x00\x00")
        await client.end(10.0)
        client.close()
        return await served(here)

    cases = (
        Case("98-idle", "", ("mqtt served",), kills, idle=True),
        Case("99-innocent", "", ("mqtt served",), served),
    )
    async with faulty(tmp_path, Fault.DIES) as target:
        found = named(await run.run(target, cases, lambda _: None))
    assert found["99-innocent"].verdict is Verdict.PASS, found["99-innocent"].judgement
    assert found[run.STAYS].verdict is Verdict.FAIL
    told = found[run.STAYS].seen
    assert told is not None
    assert told.reason.startswith("one of 98-idle: ")


@pytest.mark.parametrize(
    ("raised", "verdict", "why"),
    [
        (BrokenPromise("it came twice"), Verdict.FAIL, "it came twice"),
        (BrokenPromise("it never came", never=True), Verdict.FAIL, "it never came"),
        (BrokenPromise("it should have come", advised=True), Verdict.WARN, "it should have come"),
        (BrokenPromise("it should have", never=True, advised=True), Verdict.WARN, "it should have"),
        (Starved("not served"), Verdict.FAIL, "not served"),
        (TurnedAway("put out"), Verdict.FAIL, "put out"),
        (Impossible("no such thing here"), Verdict.SKIP, "no such thing here"),
    ],
)
@pytest.mark.parametrize("starved", [False, True])
async def test_what_a_case_raises_is_its_verdict_and_slowness_is_excused_where_others_hold_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception, verdict: Verdict, why: str, starved: bool
) -> None:
    if starved:
        monkeypatch.setattr(run, "MOST_WAITING", -1.0)

    async def raises(_scene: Scene) -> Seen:
        raise raised

    async with faulty(tmp_path) as target:
        outcome = await run._tried(Scene(target), Case("99-raises", "", ("mqtt kept",), raises))
    slow = isinstance(raised, Starved) or (isinstance(raised, BrokenPromise) and raised.never)
    assert outcome.verdict is (Verdict.INVALID if starved and slow else verdict), outcome.judgement
    assert outcome.judgement.why.startswith(why)


@pytest.mark.parametrize(
    ("raised", "verdict"),
    [
        (TurnedAway("put out"), Verdict.FAIL),
        (Starved("not served"), Verdict.FAIL),
        (BrokenPromise("it came twice"), Verdict.SKIP),
    ],
)
async def test_what_is_not_claimed_excuses_no_harm_to_a_good_device(
    tmp_path: Path, raised: Exception, verdict: Verdict
) -> None:
    async def raises(_scene: Scene) -> Seen:
        raise raised

    case = Case("99-raises", "", ("mqtt kept",), raises, needs=frozenset({Feature.REGISTRY}))
    async with faulty(tmp_path) as target:
        outcome = await run._tried(Scene(target), case)
    assert outcome.verdict is verdict, outcome.judgement


def test_who_grants_a_subscription_is_held_to_what_is_delivered_on_it() -> None:
    """Granting one on which nothing comes is a way to keep a topic policy, too."""
    (case,) = pick(CATALOGUE, ["36-other-device"])
    heard, granted = (Seen(Layer.MQTT, code, got_in=True) for code in (DELIVERED, NOT_DELIVERED))
    assert run._needed(case, heard) == {Feature.TOPIC_POLICY}
    assert run._needed(case, granted) == {Feature.TOPIC_POLICY, Feature.SUBSCRIPTION_POLICY}


async def test_a_case_that_only_waits_does_so_with_others_and_before_the_rest_and_the_last_come_last(
    tmp_path: Path,
) -> None:
    tried: list[str] = []

    def case(name: str, *, idle: bool = False, last: bool = False) -> Case:
        async def attempt(here: Scene) -> Seen:
            tried.append(name)
            return await served(here)

        return Case(name, "", ("mqtt served",), attempt, idle=idle, last=last)

    cases = (case("1-last", last=True), case("2-plain"), case("3-idle", idle=True), case("4-plain"))
    told: list[str] = []
    async with faulty(tmp_path) as target:
        found = await run.run(target, cases, lambda outcome: told.append(outcome.name))
    assert tried == ["3-idle", "2-plain", "4-plain", "1-last"]
    assert told == [*tried, run.ALIVE, run.STAYS]
    assert [outcome.name for outcome in found] == ["1-last", "2-plain", "3-idle", "4-plain", run.ALIVE, run.STAYS]


async def test_a_policy_that_lets_nobody_watch_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float | None] = []

    async def unheard(_here: Scene, _client: RawClient, _name: str, _watcher: Watcher, deadline: float | None) -> Seen:
        waited.append(deadline)
        return Seen(Layer.MQTT, OPEN, "", ClosedBy.NOBODY, got_in=True)

    monkeypatch.setattr(Scene, "_marked", unheard)
    async with faulty(tmp_path, Fault.NONE) as target:
        here = Scene(target)
        for _ in range(3):
            with pytest.raises(Impossible, match=r"reaches no service .*: does the broker's policy allow both"):
                await here.watcher()
    assert waited == [None, scene.SOON, scene.SOON]


async def test_a_case_that_fails_leaves_nothing_retained_at_the_broker(tmp_path: Path) -> None:
    async with faulty(tmp_path, Fault.NONE) as target:
        here = Scene(target)
        watcher = await here.watcher()

        async def fails() -> None:
            async with Parties(here) as parties:
                device = await parties.device()
                parties.retained(device, parties.topic(device, "state"))
                device.cut()
                raise BrokenPromise("its connection is gone, and the message still there")

        with pytest.raises(BrokenPromise):
            await fails()
        assert await watcher.got(b"", PATIENCE)
        await here.close()
