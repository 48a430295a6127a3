"""What a member of a share leaves goes to another in portions: others are served meanwhile, a crash costs nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from broker.engine.handover import PORTION, STRUCK
from broker.mqtt.connect import Connack
from tests.support.pki import shared_service
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, V5, MemoryBroker, WireClient, connect_packet, publication, will

TOPIC = "fleet/meters/meter-1/telemetry"
SHARED = "$share/workers/fleet/#"
LEFT = 2 * PORTION + 40
WAITING = "SELECT count(*) FROM deliveries"
ROOM: dict[str, Any] = {"receive_maximum": 65535}


def member(broker: MemoryBroker, name: str, **connect: Any) -> WireClient:
    client = broker.service(name, **{**ROOM, **connect})
    client.subscribe(SHARED, qos=2)
    return client


def fill(broker: MemoryBroker, qos: int, number_of: int = LEFT) -> list[bytes]:
    """Publish so many messages to the only member; return their payloads."""
    meter = broker.device("meter-1")
    payloads = [b"%d" % number for number in range(number_of)]
    for place in range(0, number_of, 100):
        meter.send(*(publication(TOPIC, each, qos, packet_id=int(each) + 1) for each in payloads[place : place + 100]))
    return payloads


def lose(client: WireClient) -> None:
    """Let the connection of *client* be found broken, without what the event loop does then."""
    client.transport.closed = True
    client.connection.lost("CONNECTION_LOST", client.broker.now)


def write(broker: StoredBroker) -> None:
    """Write one batch, without what the event loop does then."""
    batch = broker.journal.take()
    if batch is not None:
        broker.store._apply(batch)
        broker.engine.stored(broker.now)


def held(client: WireClient) -> list[bytes]:
    return sorted((each.message.payload for each in client.session.deliveries()), key=int)


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredBroker]:
    opened = StoredBroker(tmp_path, max_inflight=65535, max_queued_messages=100_000)
    yield opened
    opened.close()


def test_others_are_served_between_two_portions() -> None:
    broker = MemoryBroker(max_inflight=65535)
    leaving = member(broker, "leaving")
    payloads = fill(broker, 1)
    staying = member(broker, "staying")
    writes = staying.transport.writes
    lose(leaving)
    given = [0]
    while broker._soon:
        broker._soon.popleft()()
        given.append(len(list(staying.session.deliveries())))
    assert max(later - before for before, later in pairwise(given)) == PORTION
    assert held(staying) == payloads
    assert staying.transport.writes == writes + 3, "one for each portion"


@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize("written", [0, 1, 2, 3, 4])
def test_a_crash_between_two_portions_loses_nothing_and_doubles_nothing(
    stored: StoredBroker, qos: int, written: int
) -> None:
    leaving = member(stored, "leaving", **KEPT)
    leaving.vanish()  # So that at QoS 2 nothing was sent: what was goes to nobody.
    payloads = fill(stored, qos)
    staying = member(stored, "staying", **KEPT)
    staying.vanish()
    stored.held = True
    session = stored.engine.registry.called("leaving")[0]
    stored.engine.forget(session, stored.now)
    for _ in range(written):
        write(stored)
        if stored._soon:
            stored._soon.popleft()()
    after = stored.killed()
    found = after.service("staying", **ROOM, **KEPT)
    if written == 0:  # The end of the session was not written: it is as if nothing had happened.
        (again,) = after.engine.registry.called("leaving")
        assert len(list(again.deliveries())) == LEFT
    else:
        assert after.engine.registry.called("leaving") == []
        assert held(found) == payloads
    assert after.store.rows("SELECT count(*) FROM deliveries") == [(LEFT,)]


def test_who_comes_back_under_its_name_waits_and_begins_afresh(stored: StoredBroker) -> None:
    leaving = member(stored, "leaving", **KEPT)
    payloads = fill(stored, 1)
    staying = member(stored, "staying", **KEPT)
    lose(leaving)
    stored.engine.forget(stored.engine.registry.called("leaving")[0], stored.now)
    again = stored.open_service("leaving")
    again.connection.receive(connect_packet(V5, client_id="leaving", **KEPT).encode(V5), stored.now)
    stored._soon.popleft()()
    assert 0 < len(held(staying)) < LEFT
    assert again.received() == []
    stored.settle()
    assert not again.next_packet(Connack).session_present
    assert held(staying) == payloads
    after = stored.killed()
    assert len(after.engine.registry.called("leaving")) == 1
    assert held(after.service("staying", **ROOM, **KEPT)) == payloads


def test_who_waits_is_let_on_as_of_then_if_its_certificate_has_not_ended_meanwhile() -> None:
    broker = MemoryBroker(max_inflight=65535)
    leaving = member(broker, "leaving", **KEPT)
    fill(broker, 1)
    member(broker, "staying", **KEPT)
    lose(leaving)
    broker.engine.forget(broker.engine.registry.called("leaving")[0], broker.now)
    ending, again = (broker.open(shared_service("leaving")) for _ in range(2))
    for each in (ending, again):
        each.connection.receive(connect_packet(V5, client_id="leaving", **KEPT).encode(V5), broker.now)
    ending.connection.expires_at = broker.now + 1
    broker.now += 20
    broker.settle()
    assert (ending.closed, broker.metrics.refused["EXPIRED"]) == (True, 1)
    assert again.connection.since == broker.now


@pytest.mark.parametrize("share", [LEFT, PORTION], ids=["in portions", "at once"])
def test_of_a_session_that_was_to_end_with_the_broker_nothing_stays_in_the_store(
    stored: StoredBroker, share: int
) -> None:
    """Its client had resumed it for one connection when the broker was killed."""
    member(stored, "leaving", **KEPT).vanish()
    fill(stored, 1, share)
    member(stored, "staying", **KEPT).vanish()
    stored.held = True
    asking = stored.open_service("leaving")
    asking.connection.receive(
        connect_packet(V5, client_id="leaving", clean_start=False, session_expiry_interval=0).encode(V5), stored.now
    )
    write(stored)
    after = stored.killed()
    staying = after.service("staying", **ROOM, **KEPT)
    assert len(held(staying)) == share
    staying.acknowledge(*staying.messages())
    after.settle()
    for count in ("SELECT count(*) FROM deliveries", "SELECT count(*) FROM messages"):
        assert after.store.rows(count) == [(0,)]


@pytest.mark.parametrize("crashes_after", [None, 2])
def test_what_goes_to_nobody_is_struck_in_portions_and_a_crash_brings_none_of_it_back(
    stored: StoredBroker, crashes_after: int | None
) -> None:
    leaving = stored.service("leaving", **ROOM, **KEPT)
    leaving.subscribe("fleet/#", qos=2)
    count = 2 * STRUCK + 40
    fill(stored, 1, count - 40)
    fill(stored, 2, 40)
    lose(leaving)
    stored.held = True
    stored.engine.forget(stored.engine.registry.called("leaving")[0], stored.now)
    left = [count]
    for portion in itertools.count():
        write(stored)
        left.append(stored.store.rows(WAITING)[0][0])
        if not stored._soon or portion == crashes_after:
            break
        stored._soon.popleft()()
    assert max(before - after for before, after in pairwise(left)) == STRUCK
    assert left[-1] == 0 if crashes_after is None else 0 < left[-1] < count
    after = stored.killed()
    assert after.engine.registry.called("leaving") == []
    assert after.service("leaving", **ROOM, **KEPT).received() == []
    after.settle()
    for query in ("SELECT count(*) FROM deliveries", "SELECT count(*) FROM messages"):
        assert after.store.rows(query) == [(0,)]


def test_a_will_is_sent_once_though_a_crash_comes_before_the_last_portion(stored: StoredBroker) -> None:
    last_words = will("fleet/meters/meter-1/cmd/will", b"gone", 1, will_delay_interval=60)
    leaving = member(stored, "leaving", will=last_words, **KEPT)
    fill(stored, 1)
    member(stored, "staying", **KEPT).vanish()
    watcher = stored.service("watcher", **KEPT)
    watcher.subscribe("fleet/meters/meter-1/cmd/will", qos=1)
    watcher.vanish()
    stored.held = True
    lose(leaving)
    (session,) = stored.engine.registry.called("leaving")
    stored.engine.forget(session, stored.now)
    write(stored)
    after = stored.killed(away=120)
    after.advance(200)
    assert after.service("watcher", **KEPT).payloads() == [b"gone"]


def test_a_broker_that_stops_gives_everything_away_at_once(stored: StoredBroker) -> None:
    leaving = member(stored, "leaving")
    payloads = fill(stored, 1)
    staying = member(stored, "staying", **KEPT)
    lose(leaving)
    stored.engine.stop(stored.now)
    assert staying.closed
    write(stored)  # As the process does when it closes its store.
    after = stored.killed()
    assert held(after.service("staying", **ROOM, **KEPT)) == payloads
