"""Messages with the scenario's own payload, from the device that sends them to the backend that judges them."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from device_sim.device import Device, Event
from device_sim.fleet.backend import Backend, Own
from device_sim.fleet.commands import Command
from device_sim.fleet.live_device import LiveDevice
from device_sim.fleet.surroundings import Counters, Surroundings
from device_sim.link.link import Link, NotConnected, UserProperties
from device_sim.scenario.groups import Group, Telemetry
from device_sim.telemetry.seal import key_of, sealed_object
from device_sim.telemetry.stamp import NAME

SEED, MARK = 42, 7
TOPIC = "plant/north/meter-1/data"
Sent = tuple[str, bytes, UserProperties]


class _Line:
    """A connection that notes what is sent."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []

    def publish(self, topic: str, payload: bytes, _qos: int, *, user_properties: UserProperties) -> int:
        self.sent.append((topic, payload, user_properties))
        return len(self.sent)


class _FullLine(_Line):
    """A connection whose queue is full."""

    def __init__(self) -> None:
        super().__init__()
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.refused = 0

    def publish(self, *_message: object, **_properties: object) -> int:
        self.refused += 1
        raise NotConnected("not sent: 100 messages wait for the broker already")


def device(line: _Line, **telemetry: Any) -> LiveDevice:
    machine = Device("meter-1", "north")
    for event in (Event.ISSUED, Event.DIALLED, Event.ADMITTED):
        machine.happened(event)
    nothing = cast("Any", None)
    surroundings = Surroundings(nothing, nothing, nothing, Counters(), SEED, MARK)
    group = Group(name="meters", telemetry=Telemetry(**telemetry))
    found = LiveDevice(machine, surroundings, group, lambda _: None)
    found.connection = cast("Link", line)
    return found


def sent(count: int) -> list[Sent]:
    line = _Line()
    meter = device(line, topic="plant/{group}/{name}/data", payload="{number}")
    assert all(meter.publish_reading(float(number)) for number in range(count))
    return line.sent


def backend(*, stamped: bool = True) -> Backend:
    return Backend("backend", ["meter-1"], mark=MARK, own={TOPIC: Own("meter-1", stamped)})


def test_what_was_sent_arrives_with_its_number() -> None:
    receiver = backend()
    for topic, payload, properties in sent(3):
        receiver._received_whole(topic, payload, properties)
    check = receiver.checks["meter-1"]
    assert (check.received, check.highest, receiver.received, receiver.latency.count) == (3, 3, 3, 3)
    assert (receiver.altered, receiver.unexpected) == (0, 0)
    assert [(topic, payload) for topic, payload, _ in sent(3)] == [(TOPIC, b"1"), (TOPIC, b"2"), (TOPIC, b"3")]


def test_what_is_sent_again_has_the_stamp_that_it_had() -> None:
    first, second = _Line(), _Line()
    meter = device(first, payload="{number} {time}")
    meter.publish_reading(1.0)
    meter.publish_reading(2.0)
    meter._send_again(cast("Link", second))
    assert second.sent == first.sent
    assert [name for _, _, properties in second.sent for name, _ in properties] == [NAME, NAME]
    assert meter.sent().repeated == (1, 2)


def test_a_reading_that_is_due_while_its_device_is_out_is_missed() -> None:
    """It is in no latency: a broker that lets its fleet in after a minute looked as quick as one that does at once."""
    meter = device(_Line())
    meter.machine.happened(Event.LOST)
    counters = meter._surroundings.counters
    assert not meter.publish_reading(1.0)
    assert counters.missed == 0, "it is not to be connected: it sleeps, or is revoked"
    meter.out_since = 1.0
    assert not meter.publish_reading(2.0)
    assert not meter.publish_reading(3.0)
    assert (counters.missed, counters.published, counters.held_back) == (2, 0, 0)


@pytest.mark.parametrize(
    ("change", "altered", "unexpected"),
    [
        (lambda one, other: (one[0], other[1], one[2]), 1, 0),
        (lambda one, other: (one[0], one[1], other[2]), 1, 0),
        (lambda one, _: (one[0], one[1], ()), 0, 1),
        (lambda one, _: (one[0], one[1], ((NAME, "1 2 3"),)), 0, 1),
        (lambda one, _: (one[0], one[1], ((NAME, "0 2 3 00000000"),)), 1, 0),
        (lambda one, _: (one[0].replace("meter-1", "meter-2"), one[1], one[2]), 0, 1),
        (lambda one, _: ("fleet/north/meter-1/telemetry", one[1], one[2]), 0, 1),
    ],
)
def test_what_is_not_as_it_was_sent_has_not_been_received(change: Any, altered: int, unexpected: int) -> None:
    receiver = backend()
    receiver._received_whole(*change(*sent(2)))
    assert (receiver.altered, receiver.unexpected, receiver.received) == (altered, unexpected, 0)
    assert receiver.checks["meter-1"].received == 0
    assert len(receiver.unexpected_examples) == unexpected


def test_a_payload_of_ours_to_an_own_topic_is_judged_by_its_seal() -> None:
    line = _Line()
    device(line, topic="plant/{group}/{name}/data").publish_reading(1.0)
    ((topic, payload, properties),) = line.sent
    assert not properties
    receiver = backend(stamped=False)
    receiver._received_whole(topic, payload, ())
    receiver._received_whole(topic, payload.replace(b'"seq":1', b'"seq":2'), ())
    assert (receiver.received, receiver.altered, receiver.unexpected) == (1, 1, 0)


async def test_a_command_that_cannot_be_answered_stays_unanswered_and_ends_nothing() -> None:
    line = _FullLine()
    meter, topic = device(line), "fleet/north/meter-1/cmd/identify"
    meter._received(topic, sealed_object(Command("backend-1", "identify", {}).encode(), key_of(topic, MARK)))
    assert line.refused == 1


def test_of_many_unexpected_messages_a_few_are_kept_and_not_much_of_each() -> None:
    receiver = backend()
    for _ in range(10):
        receiver._received_whole("nowhere", bytes(1000), ())
    assert receiver.unexpected == 10
    assert len(receiver.unexpected_examples) == 3
    assert all(len(what) < 300 for _, what in receiver.unexpected_examples)
