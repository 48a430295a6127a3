"""What one client of a benchmark counts and measures, whatever its link does."""

from __future__ import annotations

import asyncio
import time
from io import StringIO
from typing import Any, cast

import pytest
from rich.console import Console

from device_sim.bench.bench import Client, Figures
from device_sim.bench.keyring import Party
from device_sim.bench.payload import stamp_of
from device_sim.bench.plan import Kind, Plan
from device_sim.bench.show import summary
from device_sim.bench.sizes import always, sizes_in
from device_sim.link.closure import Closure, Layer
from device_sim.link.link import NotConnected

PARTY = Party(7, "meter-7", "meters", None)
GONE = Closure(Layer.TCP, "reset", "the peer reset the connection", 0.0)


class Wire:
    """A link that keeps what is published on it, unless it is *full*."""

    def __init__(self) -> None:
        self.closed: asyncio.Future[Closure] = asyncio.get_running_loop().create_future()
        self.sent: list[bytes] = []
        self.full = False

    def publish(self, _topic: str, body: bytes, qos: int, *, retain: bool) -> int:
        del retain
        if self.full:
            raise NotConnected("not sent: 100 messages wait for the broker already")
        self.sent.append(body)
        return len(self.sent) if qos else 0


def words_of(shown: Any) -> str:
    told = StringIO()
    Console(file=told, width=300).print(shown)
    return told.getvalue()


def linked(figures: Figures) -> tuple[Client, Wire]:
    client, wire = Client(PARTY, "a", figures), Wire()
    client.link = cast("Any", wire)
    return client, wire


@pytest.mark.parametrize("qos", [0, 1, 2])
async def test_a_message_is_published_when_the_link_has_taken_it(qos: int) -> None:
    figures, plan = Figures(), Plan(Kind.PUB, 1, 1.0, "a", qos, size=always(64))
    client, wire = linked(figures)
    taken = []
    for full in (False, True, False):
        wire.full = full
        taken.append(client.publish(time.monotonic(), plan))
    wire.closed.set_result(GONE)
    taken.append(client.publish(time.monotonic(), plan))
    assert taken == [True, False, True, False]
    assert (figures.published, figures.held_back, len(client.pending)) == (2, 1, 2 if qos else 0)
    stamps = [stamp_of(body) for body in wire.sent]
    found = [(each.client, each.number, each.qos) for each in stamps if each is not None]
    assert found == [(7, 1, qos), (7, 2, qos)], "what was held back has no number: it is not missing"
    assert not Client(PARTY, "a", figures).publish(time.monotonic(), plan), "it has not connected yet"
    assert figures.published == 2


@pytest.mark.parametrize(
    ("number", "acknowledged", "rejected"), [(0x00, 1, 0), (0x10, 1, 0), (0x7F, 1, 0), (0x80, 0, 1), (0x87, 0, 1)]
)
async def test_the_time_to_an_acknowledgement_is_measured_once_whatever_it_says(
    number: int, acknowledged: int, rejected: int
) -> None:
    figures = Figures()
    client, _ = linked(figures)
    client.pending[1] = time.monotonic() - 0.2
    for packet_id in (1, 1, 2):  # The second and the third are of no message.
        client.acknowledged(packet_id, number, "")
    assert (figures.acknowledged, figures.rejected, figures.puback.count) == (acknowledged, rejected, 1)
    assert 199 <= figures.puback.highest < 60_000
    assert client.pending == {}


@pytest.mark.parametrize(("leaving", "connected", "lost"), [(False, 2, {"tcp reset": 1}), (True, 3, {})])
async def test_a_connection_that_ends_is_lost_unless_the_benchmark_is_over(
    leaving: bool, connected: int, lost: dict[str, int]
) -> None:
    figures = Figures(connected=3, leaving=leaving)
    client, wire = linked(figures)
    wire.closed.set_result(GONE)
    client.ended(wire.closed)
    assert (figures.connected, dict(figures.lost)) == (connected, lost)


async def test_the_benchmark_ends_with_the_last_message_that_is_wanted() -> None:
    figures = Figures(wanted=2)
    client, _ = linked(figures)
    ended = []
    for _ in range(3):
        client.received("a", b"foreign")
        ended.append(figures.enough.is_set())
    assert (ended, figures.received, figures.end_to_end.count) == ([False, True, True], 3, 0)


async def test_a_payload_of_the_users_own_is_sent_as_it_is_and_nothing_is_claimed_of_it() -> None:
    figures, plan = Figures(), Plan(Kind.PUB, 1, 1.0, "a", content=b"\0mine")
    client, wire = linked(figures)
    assert client.publish(time.monotonic(), plan)
    assert wire.sent == [b"\0mine"]
    reader, _ = linked(Figures())
    for body in wire.sent:
        reader.received("a", body)
    seen = reader._figures
    assert (seen.received, seen.unchecked, seen.altered, seen.end_to_end.count) == (1, 1, 0, 0)
    sent, read = (words_of(summary(plan, each)) for each in (figures, seen))
    assert "the payload is yours and has no number" in sent
    assert "they have no number: whether such messages are missing" in read


async def test_only_payloads_that_are_large_enough_take_a_number() -> None:
    """A number that no message has would be a message that is missing."""
    figures, plan = Figures(), Plan(Kind.PUB, 1, 1.0, "a", size=sizes_in("16:1,40:1"))
    client, wire = linked(figures)
    for _ in range(40):
        client.publish(time.monotonic(), plan)
    numbered = [stamp.number for body in wire.sent if (stamp := stamp_of(body)) is not None and stamp.number]
    assert {len(body) for body in wire.sent} == {16, 40}
    assert numbered == list(range(1, len(numbered) + 1))
    reader, _ = linked(Figures())
    for body in wire.sent:
        reader.received("a", body)
    assert (reader.arrivals.missing, reader._figures.unchecked) == (0, 40 - len(numbered))
    assert f"{40 - len(numbered)} of them have no number" in words_of(summary(plan, reader._figures))
