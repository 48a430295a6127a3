"""Many devices on one loop, against a broker that nobody here wrote."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from device_sim.behaviour.behaviour import Outcome
from device_sim.behaviour.presence import OFFLINE, ONLINE
from device_sim.behaviour.responding import Responding
from device_sim.device import State
from device_sim.fleet.backend import Backend
from device_sim.fleet.fleet import Fleet, Member
from device_sim.fleet.surroundings import Counters, Surroundings
from device_sim.fleet.tally import account, is_complete, total
from device_sim.link.closure import Closure
from device_sim.link.driver import Driver
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.shared_context import SharedContext
from device_sim.scenario.groups import (
    BackoffPolicy,
    Clock,
    Clone,
    Commands,
    Flap,
    Group,
    Presence,
    Sleep,
    SlowReader,
    Telemetry,
)
from provisioning.pki.role import Role
from provisioning.pki.tls import client_context
from tests.support.authority import Authority

if TYPE_CHECKING:
    from tests.integration.device_sim.conftest import RunningBroker

SESSION_TAKEN_OVER = 0x8E
MOODY = Commands.model_validate({"refuse": "30%", "ignore": "30%"})
CONDUCT = Group(name="meters", telemetry=Telemetry(every=0.05), backoff=BackoffPolicy(base=0.05, cap=0.2))
NAMES = [f"meter-{number}" for number in range(25)]


def shared(authority: Authority) -> SharedContext:
    return SharedContext(lambda: client_context(authority.pem))


@asynccontextmanager
async def connected_fleet(
    mosquitto: RunningBroker, authority: Authority, group: Group = CONDUCT, count: int = len(NAMES), mark: int = 0
) -> AsyncIterator[tuple[Fleet, Backend]]:
    names = NAMES[:count]
    backend = Backend("backend", names, mark=mark)
    async with KeepAlive() as keep_alive:
        surroundings = Surroundings(mosquitto.endpoint, shared(authority), keep_alive, Counters(), seed=7, mark=mark)
        service = authority.issue("backend", role=Role.SERVICE, group=None)
        await backend.connect(mosquitto.endpoint, service.context(authority.pem), keep_alive)
        async with Fleet([Member(name, "meters", group) for name in names], surroundings) as fleet:
            for name, device in fleet.devices.items():
                device.issued(authority.issue(name))
            await fleet.connect(8)
            yield fleet, backend
        await backend.close()


@asynccontextmanager
async def streaming(fleet: Fleet) -> AsyncIterator[None]:
    task = asyncio.create_task(fleet.streaming.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


async def drained(fleet: Fleet, backend: Backend) -> None:
    # An acknowledgement may well come after its message has arrived, and wakes nobody who waits for arrivals.
    await fleet.quiet(15)
    assert not any(device.unacknowledged for device in fleet.devices.values())
    async with asyncio.timeout(60):
        await backend.until(
            lambda: all(is_complete(device.sent(), backend.checks[name]) for name, device in fleet.devices.items())
        )


async def test_every_message_arrives_once_and_in_order(mosquitto: RunningBroker, authority: Authority) -> None:
    async with connected_fleet(mosquitto, authority) as (fleet, backend):
        assert fleet.connected == len(NAMES)
        async with streaming(fleet), asyncio.timeout(60):
            await backend.until(lambda: backend.received >= 500)
        await drained(fleet, backend)
        sums = total(account(device.sent(), backend.checks[name]) for name, device in fleet.devices.items())
        assert sums.clean
        assert sums.published == sums.received == fleet.counters.acknowledged
        assert backend.unexpected == 0
        assert backend.latency.count == sums.received
    assert all(device.machine.state is State.ENROLLED for device in fleet.devices.values())


async def test_every_device_answers_a_command(mosquitto: RunningBroker, authority: Authority) -> None:
    async with connected_fleet(mosquitto, authority) as (fleet, backend):
        answers = await backend.command("meters", NAMES, "set-interval", {"seconds": 0.5}, deadline=60)
        assert answers.answered.keys() == set(NAMES)
        assert {device.interval for device in fleet.devices.values()} == {0.5}
        refused = await backend.command("meters", NAMES[:2], "set-interval", {"seconds": -1}, deadline=60)
        assert refused.refused.keys() == set(NAMES[:2])
        assert "seconds: use a number" in refused.refused[NAMES[0]]
        unknown = await backend.command("meters", NAMES[:1], "explode", {}, deadline=60)
        assert unknown.refused == {NAMES[0]: "unknown action 'explode'"}


async def test_who_is_not_there_does_not_answer(mosquitto: RunningBroker, authority: Authority) -> None:
    async with connected_fleet(mosquitto, authority) as (_, backend):
        for deadline in (0.5, 5, 60):  # All of it is waited for; on a busy machine an answer may take longer.
            answers = await backend.command("meters", ["meter-0", "nobody"], "identify", {}, deadline=deadline)
            if "meter-0" in answers.answered:
                break
        assert answers.missing == {"nobody"}


async def test_a_lost_connection_comes_back_and_loses_no_message(
    mosquitto: RunningBroker, authority: Authority
) -> None:
    async with connected_fleet(mosquitto, authority) as (fleet, backend):
        cut = NAMES[::5]
        async with streaming(fleet), asyncio.timeout(60):
            await backend.until(lambda: backend.received >= 100)
            for name in cut:
                connection = fleet.devices[name].connection
                assert connection is not None
                connection.abort()
            await backend.until(lambda: fleet.counters.reconnections == 5 and backend.received >= 500)
        await drained(fleet, backend)
        assert sorted(name for name, _ in fleet.lost) == sorted(cut)
        assert fleet.connected == len(NAMES)
        sums = total(account(device.sent(), backend.checks[name]) for name, device in fleet.devices.items())
        assert sums.lost == 0


async def test_a_taken_over_device_stays_away(mosquitto: RunningBroker, authority: Authority) -> None:
    async with connected_fleet(mosquitto, authority) as (fleet, _):
        first = fleet.devices["meter-0"]
        thief = Fleet(
            [Member("meter-0", "meters", CONDUCT)], first._surroundings
        )  # Two machines with one identity must not take turns for ever.
        async with thief:
            thief.devices["meter-0"].issued(authority.issue("meter-0"))
            await thief.connect(1)
            assert first.connection is not None
            await asyncio.wait_for(first.connection.closed, 60)
            await asyncio.sleep(0)  # The state follows in the loop's next turn.
            assert first.machine.state is State.REFUSED


@pytest.mark.parametrize("limit", [1, 100])
async def test_refusals_are_noted(mosquitto: RunningBroker, authority: Authority, limit: int) -> None:
    async with KeepAlive() as keep_alive:
        surroundings = Surroundings(mosquitto.endpoint, shared(authority), keep_alive, Counters(), seed=7)
        async with Fleet([Member(name, "meters", CONDUCT) for name in NAMES[:3]], surroundings) as fleet:
            for name, device in fleet.devices.items():
                device.issued(Authority().issue(name))
            await fleet.connect(limit)
            assert sorted(name for name, _ in fleet.refusals) == NAMES[:3]
            assert {closure.code for _, closure in fleet.refusals} == {"unknown_ca"}


def with_behaviours(**behaviours: object) -> Group:
    return CONDUCT.model_copy(update=behaviours)


def is_back(backend: Backend) -> bool:
    """Whether *backend* is back now."""
    return backend.is_back


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_bad_network_takes_devices_away_and_they_come_back(
    mosquitto: RunningBroker, authority: Authority
) -> None:
    flaky = with_behaviours(flap=Flap(up=0.05, down=0.05))
    async with connected_fleet(mosquitto, authority, flaky, 3) as (fleet, _):
        await until(lambda: fleet.counters.reconnections >= 6)
        assert fleet.lost_connections >= 6
        assert not fleet.falsely_refused


async def test_a_sleeping_device_finds_on_waking_what_was_sent_to_it(
    mosquitto: RunningBroker, authority: Authority
) -> None:
    sleepy = with_behaviours(sleep=Sleep(awake=0.2, asleep=0.3))
    async with connected_fleet(mosquitto, authority, sleepy, 3) as (fleet, backend):
        device = fleet.devices["meter-0"]
        await until(lambda: device.away is not None and not device.is_connected)
        answers = await backend.command("meters", ["meter-0"], "identify", {}, deadline=60)
        assert answers.answered.keys() == {"meter-0"}
        await until(lambda: fleet.counters.sleeps >= 6)
        # The session kept its subscription: nobody asked for it again.
        assert fleet.counters.sessions_resumed >= 3
        assert (fleet.counters.sessions_lost, fleet.lost_connections) == (0, 0)


async def test_what_an_earlier_run_has_left_in_a_kept_session_is_no_fault_of_the_broker(
    mosquitto: RunningBroker, authority: Authority
) -> None:
    sleepy = with_behaviours(sleep=Sleep(awake=0.1, asleep=0.3, jitter=0.0))
    once = with_behaviours(sleep=Sleep(awake=0.1, asleep=60))
    async with connected_fleet(mosquitto, authority, once, 1, mark=1) as (fleet, backend):
        device = fleet.devices["meter-0"]
        await until(lambda: device.away is not None and not device.is_connected)
        assert not (await backend.command("meters", ["meter-0"], "identify", {}, deadline=0.5)).answered
    async with connected_fleet(mosquitto, authority, sleepy, 1, mark=2) as (fleet, backend):
        answers = await backend.command("meters", ["meter-0"], "identify", {}, deadline=60)
        assert answers.answered.keys() == {"meter-0"}
        await until(lambda: fleet.counters.sessions_resumed >= 1)
        assert (fleet.counters.altered, fleet.counters.sessions_lost, backend.unexpected) == (0, 0, 0)


async def test_presence_follows_the_device_and_its_will(mosquitto: RunningBroker, authority: Authority) -> None:
    async with connected_fleet(mosquitto, authority, with_behaviours(presence=Presence()), 3) as (fleet, backend):
        await until(lambda: list(backend.presence.values()) == [ONLINE] * 3)
        await fleet.freeze(10)
        fleet.devices["meter-0"].cut()
        await fleet.devices["meter-1"].close()
        await until(lambda: backend.presence == {"meter-0": OFFLINE, "meter-1": OFFLINE, "meter-2": ONLINE})
        assert backend.presence_changes == 5


async def test_a_copied_key_makes_two_that_throw_each_other_out(mosquitto: RunningBroker, authority: Authority) -> None:
    cloned = with_behaviours(clone=Clone(every=0.05))
    async with connected_fleet(mosquitto, authority, cloned, 2) as (fleet, _):
        await until(lambda: fleet.counters.takeovers >= 4 and fleet.counters.copies_admitted >= 4)
        assert not fleet.falsely_refused  # The device comes back: it is the copy that nobody asked for.
        fleet.revoked("meter-0", 0.0)
        await until(lambda: fleet.falsely_admitted == {"meter-0"})  # This broker has not heard of the revocation.


async def test_a_slow_reader_stalls_and_reads_on(mosquitto: RunningBroker, authority: Authority) -> None:
    slow = with_behaviours(slow_reader=SlowReader(every=0.05, stall=0.05))
    async with connected_fleet(mosquitto, authority, slow, 3) as (fleet, backend):
        async with streaming(fleet):
            await until(lambda: fleet.counters.stalls >= 6 and backend.received >= 100)
        await drained(fleet, backend)
        assert fleet.lost_connections == 0
        assert total(account(device.sent(), backend.checks[name]) for name, device in fleet.devices.items()).clean


async def test_what_is_acknowledged_after_it_has_arrived_is_waited_for(
    mosquitto: RunningBroker, authority: Authority
) -> None:
    async with connected_fleet(mosquitto, authority, CONDUCT, 1) as (fleet, backend):
        device = fleet.devices["meter-0"]
        assert device.connection is not None
        device.connection.read_on(False)
        assert device.publish_reading(0.0)
        async with asyncio.timeout(60):
            await backend.until(lambda: backend.received == 1)
        assert device.unacknowledged  # It arrived, and the device has not read so.
        asyncio.get_running_loop().call_later(0.1, device.connection.read_on, True)
        await drained(fleet, backend)


async def test_what_waits_for_a_connection_goes_before_what_is_new(
    mosquitto: RunningBroker, authority: Authority
) -> None:
    async with connected_fleet(mosquitto, authority, CONDUCT, 1) as (fleet, backend):
        device = fleet.devices["meter-0"]
        for _ in range(3):
            assert device.publish_reading(0.0)
        device.cut()  # In the same turn of the loop: none of them has been sent.
        async with asyncio.timeout(60):
            while device.machine.admitted < 2:
                await asyncio.sleep(0)
        assert device.publish_reading(0.0)  # The device has only just been let in.
        await drained(fleet, backend)
        assert total(account(device.sent(), backend.checks[device.name]) for device in fleet.devices.values()).clean


async def test_a_wrong_clock_refuses_the_broker_and_that_is_nobodys_false_refusal(
    mosquitto: RunningBroker, authority: Authority
) -> None:
    wrong = with_behaviours(clock=Clock(offset=-10 * 86400.0))
    async with connected_fleet(mosquitto, authority, wrong, 2) as (fleet, _):
        assert fleet.connected == 0
        assert set(fleet.refused_by_reason) == {"tls server_certificate"}
        assert not fleet.falsely_refused
        assert "is not valid yet" in str(fleet.devices["meter-0"].machine.closure)
        assert not any(device.is_undecided for device in fleet.devices.values())


async def test_a_clock_that_is_a_little_wrong_does_no_harm(mosquitto: RunningBroker, authority: Authority) -> None:
    async with connected_fleet(mosquitto, authority, with_behaviours(clock=Clock(offset=60.0)), 2) as (fleet, _):
        assert fleet.connected == 2


async def test_devices_answer_as_their_group_says(mosquitto: RunningBroker, authority: Authority) -> None:
    moody = with_behaviours(commands=MOODY)
    async with connected_fleet(mosquitto, authority, moody) as (_, backend):
        for number, deadline in enumerate((1, 5, 60), 1):  # As above.
            answers = await backend.command("meters", NAMES, "identify", {}, deadline=deadline)
            expected = {name: Responding(MOODY).drawn(name, 7, number) for name in NAMES}
            ignored = {name for name, outcome in expected.items() if outcome is Outcome.IGNORED}
            if answers.missing == ignored:
                break
        assert answers.answered
        assert answers.missing
        assert set(answers.refused.values()) == {"this device refuses some commands"}
        assert answers.missing == ignored
        assert answers.refused.keys() == {name for name, outcome in expected.items() if outcome is Outcome.REFUSED}


async def test_an_expired_certificate_that_is_refused_is_no_false_refusal(
    mosquitto: RunningBroker, authority: Authority
) -> None:
    async with KeepAlive() as keep_alive:
        surroundings = Surroundings(mosquitto.endpoint, shared(authority), keep_alive, Counters(), seed=7)
        async with Fleet([Member("meter-0", "meters", CONDUCT)], surroundings) as fleet:
            fleet.devices["meter-0"].issued(authority.issue("meter-0", life=timedelta(seconds=-1)))
            await fleet.connect(1)
            assert fleet.refused_by_reason == {"tls certificate_expired": 1}
            assert not fleet.falsely_refused


async def test_a_refusal_that_nobody_wanted_is_false_and_one_of_the_condemned_is_not(
    mosquitto: RunningBroker, authority: Authority
) -> None:
    async with KeepAlive() as keep_alive:
        surroundings = Surroundings(mosquitto.endpoint, shared(authority), keep_alive, Counters(), seed=7)
        async with Fleet([Member(name, "meters", CONDUCT) for name in NAMES[:3]], surroundings) as fleet:
            for name, device in fleet.devices.items():
                device.issued(Authority().issue(name) if name != NAMES[2] else authority.issue(name))
            fleet.condemn(NAMES[1])
            fleet.revoked(NAMES[2], 0.0)
            await fleet.connect(3)
            assert set(fleet.falsely_refused) == {NAMES[0]}
            assert fleet.falsely_admitted == {NAMES[2]}  # This broker has not heard of any revocation.


async def test_a_backend_that_lost_its_connection_comes_back_and_one_that_left_does_not(
    mosquitto: RunningBroker, authority: Authority
) -> None:
    service = authority.issue("backend", role=Role.SERVICE, group=None).context(authority.pem)
    async with connected_fleet(mosquitto, authority, count=3) as (fleet, backend), KeepAlive() as keep_alive:
        losses: asyncio.Queue[Closure] = asyncio.Queue()
        staying = asyncio.create_task(backend.stay(losses.put_nowait))
        other = await Driver.PAHO.open(mosquitto.endpoint, service, "backend", keep_alive=keep_alive)
        lost = await asyncio.wait_for(losses.get(), 60)
        assert lost.number == SESSION_TAKEN_OVER
        await asyncio.wait_for(other.closed, 60)  # It took over in its turn.
        async with streaming(fleet):
            async with asyncio.timeout(60):
                await backend.until(lambda: backend.received > 10)
        await backend.close()
        await backend.come_back()  # Who leaves and returns has lost nothing.
        await backend.close()
        assert losses.empty()
        assert not staying.done()
        staying.cancel()
        await asyncio.wait([staying])
        assert staying.cancelled()


async def test_a_command_brings_the_backend_back_and_is_unanswered_where_there_is_no_broker(
    mosquitto: RunningBroker, authority: Authority
) -> None:
    async with connected_fleet(mosquitto, authority, count=3) as (_, backend):
        assert backend.connection is not None
        backend.connection.abort()
        await backend.connection.closed
        assert not is_back(backend)
        answers = await backend.command("meters", NAMES[:3], "identify", {}, deadline=60)
        assert answers.missing == set()
        assert is_back(backend)

        mosquitto.process.kill()
        await backend.connection.closed
        answers = await backend.command("meters", NAMES[:3], "identify", {}, deadline=60)
        assert answers.missing == set(NAMES[:3])
        assert not is_back(backend)


async def test_messages_that_the_broker_refuses_are_counted_by_reason(
    mosquitto: RunningBroker, authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "acl").write_text("topic read fleet/#\n")
    (tmp_path / "acl").chmod(0o600)
    with (tmp_path / "mosquitto.conf").open("a") as config:
        config.write(f"\nacl_file {tmp_path}/acl\n")
    mosquitto.process.send_signal(signal.SIGHUP)
    async with connected_fleet(mosquitto, authority, count=3) as (fleet, _), streaming(fleet):
        async with asyncio.timeout(60):
            while not fleet.counters.refused:
                await asyncio.sleep(0.01)
        assert set(fleet.counters.refused) == {"PUBACK 0x87"}  # Not authorized.
