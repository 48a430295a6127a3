"""A message is in the store as long as somebody is to get it from there, however sessions end, and no longer.

The store counts in memory (`Message.references`): one release too many takes a message from others, so that the next
start finds the database damaged; one too few leaves it there for ever.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from broker.mqtt.acks import Puback, Pubcomp, Pubrec, Pubrel
from broker.mqtt.packets import Packet, Subscribe, Unsubscribe
from broker.mqtt.publication import Publish
from tests.support.examples import examples
from tests.support.stored import StoredBroker
from tests.support.wire import V5, WireClient, connect_packet, publication, request, will

TOPIC = "fleet/meters/meter-1/telemetry"
LAST = will("fleet/meters/meter-1/cmd/will", b"gone", 1)
FILTERS = ("fleet/#", "$share/s/fleet/#")
NAMES = ("a", "b", "c")

names = st.sampled_from(NAMES)
steps = st.one_of(
    st.tuples(st.just("connect"), names, st.booleans(), st.sampled_from([0, 600]), st.booleans()),
    st.tuples(st.just("subscribe"), names, st.sampled_from(FILTERS), st.integers(0, 2)),
    st.tuples(st.just("unsubscribe"), names, st.sampled_from(FILTERS)),
    st.tuples(st.just("publish"), st.integers(1, 2), st.integers(1, 3)),
    st.tuples(st.just("answer"), names, st.integers(1, 3)),
    st.tuples(st.just("vanish"), names),
    st.tuples(st.just("leave"), names),
    st.tuples(st.just("wait"), st.sampled_from([1, 700])),
    st.tuples(st.just("fail"), st.booleans()),
    st.tuples(st.just("hold"), st.booleans()),
    st.tuples(st.just("kill")),
)


class Scene:
    """Three services, of which each is connected or not, and a device that publishes."""

    def __init__(self, directory: Path) -> None:
        self.broker = StoredBroker(directory, max_inflight=2)
        self.clients: dict[str, WireClient] = {}
        self.number = 0

    def do(self, step: tuple[Any, ...]) -> None:
        name, *arguments = step
        getattr(self, name)(*arguments)

    def there(self, name: str) -> WireClient | None:
        client = self.clients.get(name)
        return client if client is not None and not client.closed and client.connection.session else None

    def connect(self, name: str, clean_start: bool, expiry: int, with_will: bool) -> None:
        client = self.clients[name] = self.broker.open_service(name)
        asked = {"clean_start": clean_start, "session_expiry_interval": expiry, "receive_maximum": 2}
        client.send(connect_packet(V5, client_id=name, **asked, **({"will": LAST} if with_will else {})))

    def subscribe(self, name: str, topic_filter: str, qos: int) -> None:
        if (client := self.there(name)) is not None:
            client.send(Subscribe(1, (request(topic_filter, qos),)))

    def unsubscribe(self, name: str, topic_filter: str) -> None:
        if (client := self.there(name)) is not None:
            client.send(Unsubscribe(1, (topic_filter,)))

    def publish(self, qos: int, times: int) -> None:
        meter = self.broker.device("meter-1")
        for _ in range(times):
            self.number += 1
            meter.send(publication(TOPIC, b"%d" % self.number, qos, packet_id=self.number))
        if not meter.closed:
            meter.send(*(Pubrel(each.packet_id) for each in meter.received() if isinstance(each, Pubrec)))
        meter.vanish()

    def answer(self, name: str, most: int) -> None:
        client = self.there(name)
        if client is not None:
            client.send(*list(answers(client.received()))[:most])

    def vanish(self, name: str) -> None:
        if (client := self.there(name)) is not None:
            client.vanish()

    def leave(self, name: str) -> None:
        if (client := self.there(name)) is not None:
            client.leave()

    def wait(self, seconds: int) -> None:
        self.broker.advance(seconds)
        self.broker.keep_fresh()

    def fail(self, logged: bool) -> None:
        if self.broker.held and self.broker.journal.dirty:
            self.broker.fail(logged=logged)

    def hold(self, held: bool) -> None:
        self.broker.held = held
        self.broker.settle()

    def kill(self) -> None:
        self.clients.clear()
        self.broker = self.broker.killed()

    def check(self) -> None:
        """Let all be written, and compare what is in the store with what is owed."""
        self.hold(False)
        rows = self.broker.store.rows
        assert rows("SELECT * FROM deliveries WHERE message NOT IN (SELECT id FROM messages)") == []
        assert rows("SELECT * FROM messages WHERE id NOT IN (SELECT message FROM deliveries)") == []


def answers(packets: Iterable[Packet]) -> Iterable[Packet]:
    for each in packets:
        if isinstance(each, Publish) and each.packet_id is not None:
            yield Puback(each.packet_id) if each.qos == 1 else Pubrec(each.packet_id)
        elif isinstance(each, Pubrel):
            yield Pubcomp(each.packet_id)


KEPT_BY_TWO: list[tuple[Any, ...]] = [
    step for name in NAMES[:2] for step in (("connect", name, True, 600, False), ("subscribe", name, "fleet/#", 1))
]
RESUMED_FOR_ONE_CONNECTION: list[tuple[Any, ...]] = [
    ("publish", 1, 1),
    ("connect", "a", False, 0, True),
    ("vanish", "a"),
]


@examples(50, of=150)
@given(st.lists(steps, min_size=10, max_size=25))
@example(RESUMED_FOR_ONE_CONNECTION)
def test_a_message_is_stored_as_long_as_somebody_is_to_get_it(lived: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder))
        for step in (*KEPT_BY_TWO, *lived):
            scene.do(step)
        scene.check()
        scene.kill()
        scene.check()
        scene.broker.close()
