"""A store that fails for days: clients come and go, and nothing of it may be left in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from broker.mqtt.packets import Puback, Pubrec, Pubrel
from tests.support.stored import StoredBroker
from tests.support.wire import id_of, publication, will

FRESH: dict[str, Any] = {"clean_start": True, "session_expiry_interval": 60}
LONG: dict[str, Any] = {"clean_start": False, "session_expiry_interval": 360_000}
CMD = "fleet/meters/meter-1/cmd/1"
TOPIC = "fleet/meters/+/telemetry"


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[StoredBroker]:
    """A broker whose store cannot be written, with a session from before that has everything under way."""
    opened = StoredBroker(tmp_path, max_instances=100, max_connects_per_identity=1000)
    backend = opened.service(**LONG)
    backend.subscribe(TOPIC, qos=2)
    meter = opened.device("meter-1")
    meter.publish("fleet/meters/meter-1/telemetry", b"x", qos=2)
    (message,) = backend.messages()
    opened.held = True
    backend.send(Pubrec(id_of(message)))
    opened.fail()
    meter.vanish()
    yield opened
    opened.close()


def kept(broker: StoredBroker) -> dict[str, int]:
    """Return how much waits for the store, by kind."""
    journal = broker.journal
    assert journal.writing is None
    batch = journal.open
    batch.drop_void()
    waiting = {each.name: getattr(batch, each.name) for each in fields(batch)}
    sizes = {name: len(each) for name, each in waiting.items() if hasattr(each, "__len__")}
    for name in ("owed", "brief", "earlier", "lapsed", "resuming", "watching"):
        sizes[name] = len(getattr(journal, name))
    return sizes


def new_session_ends(broker: StoredBroker, turn: int) -> None:
    client = broker.service(client_id=f"backend-{turn}", **FRESH)
    client.leave(session_expiry_interval=0)


def new_session_expires(broker: StoredBroker, turn: int) -> None:
    broker.service(client_id=f"backend-{turn}", **FRESH).vanish()
    broker.fail()
    broker.advance(61)


def session_is_begun_afresh(broker: StoredBroker, _turn: int) -> None:
    broker.service("watcher", **FRESH).vanish()


def name_is_used_once(broker: StoredBroker, turn: int) -> None:
    broker.service(client_id=f"backend-{turn}", will=will(CMD, b"gone", 1, will_delay_interval=5)).vanish()
    broker.fail()
    broker.advance(6)


def message_is_sent_again_by_who_ends(broker: StoredBroker, turn: int) -> None:
    client = broker.service(client_id=f"backend-{turn}", **FRESH)
    client.send(publication(CMD, b"y", 1, packet_id=5, dup=True))
    client.leave(session_expiry_interval=0)


def topic_is_retained_and_cleared(broker: StoredBroker, turn: int) -> None:
    meter = broker.device("meter-2")
    meter.publish(f"fleet/meters/meter-2/{turn}", b"x", retain=True)
    if turn % 2:
        broker.fail()
    meter.publish(f"fleet/meters/meter-2/{turn}", retain=True)
    meter.leave()


def retained_message_expires(broker: StoredBroker, turn: int) -> None:
    meter = broker.device("meter-2")
    meter.publish(f"fleet/meters/meter-2/{turn}", b"x", retain=True, message_expiry_interval=2)
    broker.fail()
    broker.advance(5)
    meter.leave()


def client_resumes_an_exchange_and_is_gone(broker: StoredBroker, _turn: int) -> None:
    client = broker.service(**LONG)
    client.send(Pubrec(1))
    client.vanish()


@pytest.mark.parametrize(
    "happens",
    [
        new_session_ends,
        new_session_expires,
        session_is_begun_afresh,
        name_is_used_once,
        message_is_sent_again_by_who_ends,
        topic_is_retained_and_cleared,
        retained_message_expires,
        client_resumes_an_exchange_and_is_gone,
    ],
)
def test_nothing_grows_in_memory_however_often_it_happens(
    failing: StoredBroker, happens: Callable[[StoredBroker, int], None]
) -> None:
    sizes = []
    for turn in range(12):
        failing.keep_fresh()
        happens(failing, turn)
        failing.fail()
        sizes.append(kept(failing))
    assert sizes[-1] == sizes[3]


def test_a_client_that_repeats_itself_on_one_connection_makes_nothing_grow(failing: StoredBroker) -> None:
    backend = failing.service(**LONG)
    meter = failing.device("meter-1")
    packet = publication("fleet/meters/meter-1/telemetry", b"y", 1, packet_id=5, dup=True)
    sizes = []
    for _ in range(12):
        for _ in range(3):
            backend.send(Pubrec(1))
            meter.send(packet)
        failing.fail()
        sizes.append(kept(failing))
    assert sizes[-1] == sizes[0]
    failing.held = False
    failing.settle()
    assert [each for each in backend.received() if isinstance(each, Pubrel)] == [Pubrel(1)] * 2, "one resumes"
    assert meter.received() == [Puback(5)]


def test_who_sends_a_message_again_on_each_new_connection_is_answered_on_the_last(failing: StoredBroker) -> None:
    packet = publication("fleet/meters/meter-1/telemetry", b"y", 1, packet_id=5, dup=True)
    for _ in range(3):
        meter = failing.device("meter-1", **LONG)
        meter.send(packet)
        failing.fail()
    failing.held = False
    failing.settle()
    assert meter.received() == [Puback(5)]
    assert failing.metrics.messages_received == 4
