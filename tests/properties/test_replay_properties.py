"""Retained messages at QoS 2 over any number of lives of the broker: after each SUBSCRIBE each of them comes once.

A client that subscribes, leaves, comes back and acknowledges when it likes; retained messages that come, are replaced
and cleared meanwhile; batches that are written, cannot be, or are lost with the broker. Each message is larger than a
portion, so that every replay takes many turns.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from broker.engine.replay import PORTION
from broker.mqtt.packets import Pubcomp, Publish, Pubrec, Pubrel, Subscribe, Unsubscribe
from tests.support.examples import examples
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT, WireClient, publication, request

FILTER = "fleet/#"
TOPICS = [f"fleet/meters/meter-1/{number}" for number in range(6)]

steps = st.one_of(
    st.sampled_from(["subscribe", "unsubscribe", "vanish", "fail"]),
    st.sampled_from(["answer", "answer", "kill"]),
    st.tuples(st.sampled_from(["retain", "clear"]), st.sampled_from(TOPICS)),
)


class Reader:
    """A subscriber at QoS 2 that notes what it has got since it subscribed last."""

    def __init__(self) -> None:
        self.client: WireClient | None = None
        self.got: list[bytes] = []
        self._known: set[int] = set()

    def connect(self, broker: StoredBroker) -> WireClient:
        if self.client is None or self.client.closed:
            self.client = broker.open_service()
            answer = self.client.connect(client_id="backend", receive_maximum=1, **KEPT)
            if not answer.session_present:
                self._known.clear()
        return self.client

    def take(self, client: WireClient) -> bool:
        """Take what has come, each message once, and answer it; return whether there was anything."""
        packets = client.received()
        for packet in packets:
            if isinstance(packet, Publish) and packet.packet_id is not None:
                assert packet.qos == 2
                if packet.packet_id not in self._known:
                    self._known.add(packet.packet_id)
                    self.got += packet.payload.split()[:1]  # An empty one says that a topic was cleared.
                client.send(Pubrec(packet.packet_id))
            elif isinstance(packet, Pubrel):
                self._known.discard(packet.packet_id)
                client.send(Pubcomp(packet.packet_id))
        return bool(packets)


@examples(40, of=150)
@given(st.lists(steps, min_size=10, max_size=30))
def test_each_retained_message_comes_once_whatever_breaks(sequence: list[str | tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        broker = StoredBroker(Path(directory))
        reader = Reader()
        for topic in TOPICS[:4]:
            _retain(broker, topic, b"first-" + topic[-1:].encode())
        for count, step in enumerate(["subscribe", *sequence]):
            client = reader.connect(broker)
            match step:
                case "subscribe":
                    while reader.take(client):  # What was sent for the last SUBSCRIBE, and is all of it now.
                        pass
                    reader.got.clear()
                    client.send(Subscribe(1, (request(FILTER, 2),)))
                case "unsubscribe":
                    client.send(Unsubscribe(2, (FILTER,)))
                case "answer":
                    reader.take(client)
                case "vanish":
                    client.vanish()
                case "kill":
                    broker, reader.client = broker.killed(), None
                case "fail":
                    broker.held = True
                    client.send(Subscribe(3, (request("fleet/meters/none", 2),)))
                    broker.fail()
                    broker.held = False
                    broker.settle()
                case (kind, topic):
                    _retain(broker, topic, b"%d" % count if kind == "retain" else b"")
            assert len(reader.got) == len(set(reader.got)), "doubled"
        while reader.take(reader.connect(broker)):
            pass
        assert len(reader.got) == len(set(reader.got)), "doubled"
        if FILTER in reader.connect(broker).session.subscriptions:
            retained = {each.payload.split()[0] for each in broker.engine.retained.all()}
            assert retained <= set(reader.got), "not sent"
            assert broker.store.rows("SELECT * FROM replayed") == []
        broker.close()


def _retain(broker: StoredBroker, topic: str, name: bytes) -> None:
    payload = name + b" " + bytes(PORTION) if name else b""
    meter = broker.device("meter-1")
    meter.send(publication(topic, payload, 2, packet_id=1, retain=True))
    meter.send(Pubrel(1))
    meter.leave()
