"""Whether others are served meanwhile is a matter of who is served at all, not of how fast the machine is."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from broker.mqtt.codes import PacketType, ProtocolVersion, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.publish import PINGRESP
from device_sim import core_wait
from device_sim.attack import handshake_cases, run
from device_sim.attack.capabilities import Capabilities, Feature
from device_sim.attack.case import Case
from device_sim.attack.catalogue import CATALOGUE
from device_sim.attack.scene import Scene
from device_sim.attack.target import SigningRegistrar, Target, TurnedAway
from device_sim.attack.verdict import STARVED, ClosedBy, Judgement, Layer, Outcome, Seen, Verdict
from device_sim.link.tls_dial import Endpoint
from tests.support.own_server import own_server

NAMES = ("32-handshake-flood", "32-reconnect-storm")

Serves = Callable[[int], bool | None]
"""Whether the client of that number is served; None: it is cut off without a word."""


@asynccontextmanager
async def broker(directory: Path, serves: Serves, *, silent: int = 0) -> AsyncIterator[Target]:
    """Yield a broker that answers CONNECT and PINGREQ, of those whom it serves; of the *silent*-th only CONNECT."""
    authority, context = own_server(directory)
    came = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came
        came += 1
        number = came
        served = serves(number)
        try:
            while served is not None and (data := await reader.read(65536)):
                if not served:
                    continue
                if data[0] >> 4 == PacketType.CONNECT:
                    writer.write(Connack(ReasonCode.SUCCESS).encode(ProtocolVersion.V5))
                if data.endswith(b"\xc0\x00") and number != silent:
                    writer.write(PINGRESP)
        except OSError:
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with listener:
        endpoint = Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], "localhost")
        claims = Capabilities(name="double", supports=frozenset({Feature.MQTT5}))
        yield Target(claims, endpoint, directory / "ca.pem", authority, SigningRegistrar(authority, None))


async def tried(target: Target, case: Case, patience: float) -> Outcome:
    scene = Scene(target, patience=patience)
    try:
        return await run._tried(scene, case)
    finally:
        await scene.close()


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    return next(each for each in CATALOGUE if each.name == request.param)


@pytest.fixture(autouse=True)
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how many seconds the attacker waits for a core between two looks at that: 0, if a test says nothing."""
    seconds = [0.0]
    looks = itertools.count()
    monkeypatch.setattr(core_wait, "seconds_waited", lambda _process: next(looks) * seconds[0])
    return seconds


async def test_who_serves_the_good_one_passes_however_long_it_takes(tmp_path: Path, case: Case) -> None:
    async with broker(tmp_path, lambda _: True) as target:
        outcome = await tried(target, case, 60.0)
    assert (outcome.verdict, outcome.judgement.why) == (Verdict.PASS, "")


async def test_who_cuts_a_good_one_off_without_a_word_and_lets_it_in_later_passes(tmp_path: Path, case: Case) -> None:
    async with broker(tmp_path, lambda number: True if number % 3 == 0 else None) as target:
        outcome = await tried(target, case, 60.0)
    assert outcome.verdict is Verdict.PASS


async def test_a_storm_of_which_nothing_came_through_was_none(
    tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a broker passes that nobody has attacked: from another address it was not reached."""
    monkeypatch.setattr(handshake_cases, "_AGAIN", 0.0)
    monkeypatch.setattr(handshake_cases, "_elsewhere", lambda _: "203.0.113.1")  # Not of this machine.
    async with broker(tmp_path, lambda _: True) as target:
        outcome = await tried(target, case, 60.0)
    assert outcome.verdict is Verdict.SKIP, outcome.judgement
    assert outcome.judgement.why.startswith("not one hostile connection came through, so there was no trouble: tcp ")


async def test_who_turns_the_storm_away_and_serves_the_good_one_passes(
    tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is a defence, and was held against it where the flood is one of connections."""
    looks = itertools.count()
    monkeypatch.setattr(handshake_cases, "_AGAIN", 0.0)
    monkeypatch.setattr(handshake_cases, "_elsewhere", lambda _: None if next(looks) < 3 else "203.0.113.1")
    async with broker(tmp_path, lambda _: True) as target:
        outcome = await tried(target, case, 60.0)
    assert outcome.verdict is Verdict.PASS, outcome.judgement


@pytest.mark.timeout(60)
async def test_a_broker_that_dies_in_a_storm_is_found_dead(tmp_path: Path, case: Case) -> None:
    """The storm, which is turned away at once from then on, must let others have a turn."""

    def serves(number: int) -> bool:
        if number > 5:
            target.endpoint = replace(target.endpoint, port=nobody)
        return True

    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        nobody = unheard.getsockname()[1]
        async with broker(tmp_path, serves) as target:
            outcome = await tried(target, case, 1.0)
    assert outcome.verdict is Verdict.FAIL, outcome.judgement
    assert "a good device was not let in within 1 s" in outcome.judgement.why


async def test_who_serves_nobody_while_others_make_trouble_fails(tmp_path: Path, case: Case) -> None:
    async with broker(tmp_path, lambda _: False) as target:
        outcome = await tried(target, case, 1.0)
    assert outcome.verdict is Verdict.FAIL
    assert outcome.seen is not None
    assert outcome.seen.text == "mqtt starved"


async def test_on_a_machine_that_others_hold_it_says_nothing_of_the_broker(
    tmp_path: Path, case: Case, waited: list[float]
) -> None:
    waited[0] = 60.0
    async with broker(tmp_path, lambda _: False) as target:
        outcome = await tried(target, case, 0.3)
    assert outcome.verdict is Verdict.INVALID


async def test_a_ping_that_is_not_answered_while_another_floods_is_a_failure_and_no_skip(tmp_path: Path) -> None:
    flood = next(each for each in CATALOGUE if each.name == "39-flood")
    async with broker(tmp_path, lambda _: True) as target:
        assert (await tried(target, flood, 60.0)).verdict is Verdict.PASS
    async with broker(tmp_path, lambda _: True, silent=2) as target:
        outcome = await tried(target, flood, 1.0)
    assert outcome.verdict is Verdict.FAIL
    assert outcome.seen is not None
    assert outcome.seen.text == "mqtt starved"


async def test_a_broker_that_is_gone_is_not_slow(tmp_path: Path, waited: list[float]) -> None:
    """Nobody listens: that is the machine's own answer, and it has had time for it."""
    waited[0] = 60.0
    good = next(each for each in CATALOGUE if each.name == "1-good")
    async with broker(tmp_path, lambda _: True) as target:
        scene = Scene(target)
        paper = await scene.device()
        (await scene.admitted(paper)).close()
    try:
        with pytest.raises(TurnedAway, match="nobody listens there"):
            await scene.admitted(paper)
        watch = core_wait.CoreWatch("the attacker", {})
        outcome = await run._tried(scene, good)
        harm = await scene.bystander.harmed(good.name)
        assert run._with_harm(replace(outcome, judgement=Judgement(Verdict.PASS)), harm, watch).verdict is Verdict.FAIL
    finally:
        await scene.close()


@pytest.mark.parametrize(
    ("verdict", "expected"), [(Verdict.FAIL, Verdict.FAIL), (Verdict.PASS, Verdict.INVALID), (None, Verdict.INVALID)]
)
def test_a_bystander_that_was_not_served_on_a_starved_machine_takes_no_failure_away(
    waited: list[float], verdict: Verdict | None, expected: Verdict
) -> None:
    """Who got in got in, however slow the machine is."""
    judgement = Judgement(verdict or Verdict.SKIP, "the attack succeeded")
    outcome = Outcome("2-no-certificate", "presents none", (), 10.0, judgement)
    watch = core_wait.CoreWatch("the attacker", {})
    waited[0] = 60.0
    harm = Seen(Layer.MQTT, STARVED, "no PINGRESP", ClosedBy.NOBODY)
    harmed = run._with_harm(outcome, harm, watch)
    assert harmed.verdict is expected
    assert ("the attack succeeded" in harmed.judgement.why) is (expected is Verdict.FAIL)
    assert run._with_harm(outcome, None, watch) is outcome
    waited[0] = 0.0
    quiet = core_wait.CoreWatch("the attacker", {})
    assert run._with_harm(outcome, harm, quiet).judgement.why.startswith("a good device, connected all the time, was")
