"""Across a long link a case that only came late says nothing about the broker; what is wrong is wrong everywhere."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from device_sim.attack import bystander, conduct_cases, handshake_cases, run, session_cases
from device_sim.attack import entry as entry_module
from device_sim.attack.capabilities import Capabilities, Feature, TimeLimits
from device_sim.attack.case import Case
from device_sim.attack.catalogue import CATALOGUE, pick
from device_sim.attack.far_broker import across_this_link, unended_across_this_link
from device_sim.attack.issuer import Issuer, Paper
from device_sim.attack.raw_client import RawClient
from device_sim.attack.scene import Scene
from device_sim.attack.target import SigningRegistrar, Starved, Target, TurnedAway
from device_sim.attack.verdict import (
    BROKEN,
    KEPT,
    NEVER_CAME,
    OPEN,
    STARVED,
    TURNED_AWAY,
    ClosedBy,
    Judgement,
    Layer,
    Seen,
    Verdict,
    judge,
)
from device_sim.credentials.certification import common_name
from device_sim.link.distance import NEARBY, Distance
from device_sim.link.tls_dial import Endpoint
from device_sim.trouble.proxy import Proxy
from device_sim.trouble.trouble import Trouble
from tests.support.faulty_broker import Fault, faulty
from tests.support.own_server import own_server
from tests.unit.device_sim.attack.test_starvation import broker

SATELLITE = Distance(0.6, 0.6, 0.8, packets=1000)
SLOW = Distance(2.0, 2.0, 2.2, packets=1000)
LOSSY = replace(SATELLITE, lost=0.05)
RACK = Distance(0.001, 0.04, 0.24, 0.05)
PASS, FAIL, INVALID, WARN = Verdict.PASS, Verdict.FAIL, Verdict.INVALID, Verdict.WARN
EXPECTED = (f"mqtt {KEPT}", "mqtt DISCONNECT 0x98")
WHOLE = Seen(Layer.MQTT, KEPT, "", ClosedBy.NOBODY)
CLOSED = Seen(Layer.MQTT, "DISCONNECT 0x98", seconds=0.0)


@pytest.mark.parametrize(
    ("seen", "limit", "seconds", "distance", "expected"),
    [
        (WHOLE, 60.0, 59.0, SATELLITE, PASS),
        (WHOLE, 60.0, 108.4, SATELLITE, INVALID),  # Eighty round trips later.
        (WHOLE, 60.0, 121.0, SATELLITE, FAIL),  # More than a hundred.
        (WHOLE, 60.0, 60.1, NEARBY, FAIL),
        (WHOLE, 60.0, 60.1, RACK, FAIL),
        (CLOSED, 3.0, 2.9, SATELLITE, PASS),
        (CLOSED, 3.0, 6.5, SATELLITE, INVALID),
        (CLOSED, 3.0, 6.7, SATELLITE, FAIL),
        (CLOSED, 3.0, 8.7, LOSSY, INVALID),  # Its farewell was lost three times.
        (CLOSED, 0.5, 8.7, RACK, FAIL),
        (replace(WHOLE, code=NEVER_CAME, reason="never"), 60.0, 61.0, SATELLITE, FAIL),
        (replace(WHOLE, code=STARVED), 10.0, 4.0, LOSSY, INVALID),  # A broker lost patience with its handshake.
        (replace(WHOLE, code=STARVED), 10.0, 4.0, SATELLITE, FAIL),
        (replace(WHOLE, code=STARVED), 10.0, 4.0, RACK, FAIL),
        (replace(WHOLE, code=TURNED_AWAY), 10.0, 4.0, LOSSY, FAIL),
        (replace(WHOLE, code=BROKEN, reason="it came twice"), 60.0, 61.0, SATELLITE, FAIL),
        (replace(WHOLE, code=OPEN, got_in=True), 3.0, 4.0, LOSSY, FAIL),
        (replace(CLOSED, code="DISCONNECT 0x80"), 3.0, 2.0, SATELLITE, WARN),
        (replace(CLOSED, code="DISCONNECT 0x80"), 3.0, 3.1, SATELLITE, FAIL),
    ],
)
def test_only_lateness_is_excused_and_no_more_than_the_link_explains(
    seen: Seen, limit: float, seconds: float, distance: Distance, expected: Verdict
) -> None:
    judged = across_this_link(judge(EXPECTED, limit, seen, seconds), EXPECTED, limit, seen, seconds, distance)
    assert judged.verdict is expected
    assert ("nearer to the broker" in judged.why) is (expected is INVALID)


@pytest.mark.parametrize(
    ("seconds", "distance", "expected"),
    [
        (120.0, SATELLITE, INVALID),
        (120.0, replace(SATELLITE, usual=0.19), FAIL),
        (120.0, RACK, FAIL),
        (120.0, NEARBY, FAIL),
    ],
)
def test_a_case_without_an_end_is_excused_where_a_flood_takes_that_long(
    seconds: float, distance: Distance, expected: Verdict
) -> None:
    unended = Judgement(FAIL, "the case did not come to an end within 120 s")
    assert unended_across_this_link(unended, seconds, distance).verdict is expected


@pytest.mark.parametrize(
    ("code", "distance", "told"),
    [("closed", LOSSY, True), ("closed", SATELLITE, False), ("closed", RACK, False), ("DISCONNECT 0x80", LOSSY, False)],
)
def test_a_reason_that_the_link_may_have_lost_is_not_held_against_the_broker_alone(
    code: str, distance: Distance, told: bool
) -> None:
    """It is a warning still: whoever looks for the cause is misled."""
    seen = replace(CLOSED, code=code)
    judged = across_this_link(judge(EXPECTED, 3.0, seen, 1.0), EXPECTED, 3.0, seen, 1.0, distance)
    assert judged.verdict is WARN
    assert judged.why.startswith("refused, but not in the expected way")
    assert ("the link may have lost the reason" in judged.why) is told


@pytest.mark.parametrize(("distance", "most"), [(RACK, 1), (SATELLITE, 20)])
async def test_a_flood_is_one_across_a_long_link_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distance: Distance, most: int
) -> None:
    monkeypatch.setattr(bystander.Bystander, "distance", distance)
    trouble, at_once = handshake_cases._Trouble(40), [0, 0]

    async def makes() -> None:
        while trouble.goes_on:
            at_once[0] += 1
            at_once[1] = max(at_once)
            await asyncio.sleep(0)
            at_once[0] -= 1
            trouble.came_through()

    async with broker(tmp_path, lambda _: True) as target:
        scene = Scene(target)
        seen = await handshake_cases._meanwhile(scene, await scene.device(), trouble, makes)
    assert (seen.code, at_once) == ("served", [0, most])
    assert trouble.made >= 40


@pytest.mark.parametrize(("distance", "most"), [(RACK, 1), (SATELLITE, 6)])
async def test_many_good_devices_connect_together_across_a_long_link_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distance: Distance, most: int
) -> None:
    monkeypatch.setattr(bystander.Bystander, "distance", distance)
    async with broker(tmp_path, lambda _: True) as target:
        scene = Scene(target)
        admitted, at_once = scene.admitted, [0, 0]

        async def counted(paper: Paper) -> RawClient:
            at_once[0] += 1
            at_once[1] = max(at_once)
            try:
                client = await admitted(paper)
                whose[client] = paper.name
                return client
            finally:
                at_once[0] -= 1

        whose: dict[RawClient, str] = {}
        monkeypatch.setattr(scene, "admitted", counted)
        papers = [await scene.device() for _ in range(6)]
        clients = await session_cases._all_admitted(scene, papers)
        assert [whose[client] for client in clients] == [paper.name for paper in papers]
        assert at_once == [0, most]
        for client in clients:
            client.close()


async def test_when_one_of_many_good_devices_is_not_let_in_no_connection_is_left(tmp_path: Path) -> None:
    served: list[int] = []

    def serves(number: int) -> bool | None:
        served.append(number)
        return True if number < 3 else None

    async with broker(tmp_path, serves) as target:
        scene = Scene(target)
        with pytest.raises((Starved, TurnedAway)):
            await session_cases._all_admitted(scene, [await scene.device() for _ in range(5)])
    assert served == [1, 2, 3]


async def test_when_the_time_of_a_case_is_over_no_connection_of_many_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_waiting, clients = asyncio.Event(), []

    def serves(number: int) -> bool:
        if number == 3:
            kept_waiting.set()
        return number < 3

    async with broker(tmp_path, serves) as target:
        scene = Scene(target)
        admitted = scene.admitted

        async def noted(paper: Paper) -> RawClient:
            clients.append(await admitted(paper))
            return clients[-1]

        monkeypatch.setattr(scene, "admitted", noted)
        papers = [await scene.device() for _ in range(3)]
        task = asyncio.create_task(session_cases._all_admitted(scene, papers))
        await kept_waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [client.socket.fileno() for client in clients] == [-1, -1]


def test_another_reason_for_no_verdict_stays() -> None:
    busy = Judgement(INVALID, "late; but the attacker waited for a core")
    assert across_this_link(busy, EXPECTED, 60.0, WHOLE, 61.0, SATELLITE) is busy


@pytest.mark.parametrize(
    ("distance", "waits"),
    [(NEARBY, [3.0]), (SATELLITE, [3.0, 30.0]), (Distance(0.05, 0.05, 0.25), [3.0, 10.8])],
)
async def test_across_a_long_link_the_end_of_a_session_is_awaited_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distance: Distance, waits: list[float]
) -> None:
    monkeypatch.setattr(bystander, "distance_of", lambda _: distance)
    monkeypatch.setattr("device_sim.core_wait.seconds_waited", lambda _: 0.0)
    waited: list[float] = []

    async def still_open(within: float) -> Seen:
        waited.append(within)
        return replace(WHOLE, code=OPEN, got_in=True)

    async with broker(tmp_path, lambda _: True) as target:
        scene = Scene(target)
        await scene.bystander.come()
        try:
            assert (await scene.with_grace(still_open, 3.0)).got_in, "it is open, and no link excuses that"
        finally:
            await scene.close()
    assert waited == pytest.approx(waits)


def test_nothing_is_known_of_the_distance_before_a_good_device_is_connected(tmp_path: Path) -> None:
    authority = Issuer.founded(common_name("CA"))
    registrar = SigningRegistrar(authority, None)
    claims = Capabilities(name="broker", supports=frozenset())
    target = Target(claims, Endpoint("127.0.0.1", 1, "localhost"), tmp_path / "ca.pem", authority, registrar)
    assert Scene(target).bystander.distance is NEARBY


@pytest.mark.parametrize("distance", [NEARBY, SATELLITE], ids=["near", "far"])
@pytest.mark.parametrize(
    ("fault", "early"), [(Fault.HASTY, True), (Fault.NONE, False)], ids=["one keep alive", "one and a half"]
)
async def test_a_keep_alive_that_ends_too_early_does_so_across_any_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distance: Distance, fault: Fault, early: bool
) -> None:
    """CONNECT takes half a round trip to the broker, and the end takes half a one back: the broker waits in neither."""
    monkeypatch.setattr(run, "MOST_WAITING", 10.0)
    for module in (bystander, conduct_cases):
        monkeypatch.setattr(module, "distance_of", lambda _: distance)
    async with faulty(tmp_path, fault) as near, Proxy(near.endpoint.host, near.endpoint.port) as link:
        link.set(Trouble(latency=distance.round_trip / 2))
        target = replace(near, endpoint=replace(near.endpoint, port=link.port))
        found = await run.run(target, pick(CATALOGUE, ["41-freezes"]), lambda _: None)
    seen = found[0].seen
    assert seen is not None
    assert seen.code.endswith("too early") is early, seen.text


@pytest.mark.parametrize(("distance", "let_in"), [(NEARBY, False), (Distance(0.05, 0.05, 0.25), True)])
async def test_what_is_late_across_a_long_link_is_not_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distance: Distance, let_in: bool
) -> None:
    """The link takes a second, and a device nearby would give up after half of one."""
    monkeypatch.setattr(entry_module, "_ANSWER", 0.5)
    monkeypatch.setattr(bystander, "distance_of", lambda _: distance)
    async with broker(tmp_path, lambda _: True) as near, Proxy(near.endpoint.host, near.endpoint.port) as link:
        target = replace(near, endpoint=replace(near.endpoint, port=link.port))
        scene = Scene(target)
        await scene.bystander.come()
        try:
            link.set(Trouble(latency=0.5))
            paper = await scene.device()
            if let_in:
                (await scene.admitted(paper)).close()
                assert (await scene.show(paper)).got_in
            else:
                with pytest.raises(Starved, match="tls timeout"):
                    await scene.admitted(paper)
        finally:
            link.set(Trouble())
            await scene.close()


async def test_what_a_far_link_loses_is_known_before_the_first_case_and_stays_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel of a bystander, who sends next to nothing, would learn it when most cases are over."""
    asked = 0

    def learning(_: object) -> Distance:
        nonlocal asked
        asked += 1
        return replace(LOSSY, lost=0.05 if asked > 100 else 0.0, packets=3 * asked)

    async def cut_off(scene: Scene) -> Seen:
        assert scene.bystander.distance.lost == 0.05
        monkeypatch.setattr(bystander, "distance_of", lambda _: SATELLITE)
        scene.bystander.leave()
        await scene.bystander.come()
        raise Starved("a good device was cut off")

    monkeypatch.setattr(bystander, "distance_of", learning)
    monkeypatch.setattr(bystander, "_BETWEEN", 0.001)
    async with broker(tmp_path, lambda _: True) as target:
        found = await run.run(target, [Case("1-first", "is the first", EXPECTED, cut_off)], lambda _: None)
    assert found[0].verdict is INVALID, found[0].judgement


@pytest.mark.parametrize(("distance", "connections"), [(RACK, 1), (SATELLITE, 2)])
async def test_only_a_far_link_is_looked_at_and_on_a_connection_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distance: Distance, connections: int
) -> None:
    monkeypatch.setattr(bystander, "distance_of", lambda _: distance)
    came: list[int] = []

    def serves(number: int) -> bool:
        came.append(number)
        return True

    async with broker(tmp_path, serves) as target:
        scene = Scene(target)
        await scene.bystander.come()
        try:
            await scene.bystander.look_at_the_link()
            assert await scene.bystander.harmed("nothing") is None
        finally:
            await scene.close()
    assert len(came) == connections


async def test_a_look_at_the_link_comes_to_an_end_where_the_kernel_tells_nothing_and_where_the_broker_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bystander, "distance_of", lambda _: replace(SATELLITE, packets=0))
    monkeypatch.setattr(bystander, "_LONGEST_LOOK", 0.1)
    async with broker(tmp_path, lambda number: True if number < 3 else None) as target:
        scene = Scene(target)
        await scene.bystander.come()
        try:
            await scene.bystander.look_at_the_link()
            with pytest.raises((Starved, TurnedAway)):
                await scene.bystander.look_at_the_link()
        finally:
            await scene.close()


async def test_a_look_at_the_link_ends_with_its_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0

    def cut(connected: socket.socket) -> Distance:
        nonlocal looked
        looked += 1
        if looked > 2:
            connected.close()
        return replace(SATELLITE, packets=looked)

    async with broker(tmp_path, lambda _: True) as target:
        scene = Scene(target)
        await scene.bystander.come()
        monkeypatch.setattr(bystander, "distance_of", cut)
        try:
            await scene.bystander.look_at_the_link()
        finally:
            await scene.close()
    assert looked < 10


@asynccontextmanager
async def closing(directory: Path, seconds: float, *, tls: bool) -> AsyncIterator[Target]:
    """Yield a server that closes each connection after so many *seconds*; without *tls* it says nothing before."""
    authority, context = own_server(directory, asks=False)
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.current_task())
        await asyncio.sleep(seconds)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context if tls else None)
    async with listener:
        endpoint = Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], "localhost")
        limits = TimeLimits(handshake=0.2, connect=0.2)
        claims = Capabilities(name="closing", supports=frozenset({Feature.MQTT5}), limits=limits)
        yield Target(claims, endpoint, directory / "ca.pem", authority, SigningRegistrar(authority, None))
        await asyncio.wait([task for task in serving if task is not None])


@pytest.mark.parametrize(("distance", "expected"), [(NEARBY, FAIL), (SLOW, INVALID)], ids=["near", "far"])
@pytest.mark.parametrize(
    ("name", "tls"), [("28-silence", False), ("29-slow-handshake", False), ("30-no-connect", True),
                      ("31-slow-connect", True)],
)  # fmt: skip
async def test_who_lets_no_silent_client_stay_is_late_across_a_long_link_and_not_unable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, tls: bool, distance: Distance, expected: Verdict
) -> None:
    """It closes, but where it is far away that is still on its way when its limit is over."""
    monkeypatch.setattr("device_sim.core_wait.seconds_waited", lambda _: 0.0)
    monkeypatch.setattr(bystander.Bystander, "distance", distance)
    (case,) = pick(CATALOGUE, [name])
    async with closing(tmp_path, 3.0, tls=tls) as target:
        outcome = await run._tried(Scene(target), case)
    assert outcome.verdict is expected, outcome.judgement
    assert outcome.seen is not None
    assert outcome.seen.matches("closed") is (distance is SLOW), outcome.seen
