"""QoS 2 end to end, whatever breaks in between: each message arrives once, in order, and nothing is left over.

A client that publishes and one that subscribes, both as the standard describes them, on a broker with a real database.
In any order: packets are exchanged, either connection breaks with packets under way, batches are written, cannot be
written, or are lost with the whole broker.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from broker.mqtt.codes import QoS
from broker.mqtt.packets import Packet, Puback, Pubcomp, Publish, Pubrec, Pubrel, Suback, Subscribe, SubscriptionRequest
from provisioning.pki.role import Role
from tests.support.examples import examples
from tests.support.pki import DOMAIN, shared_device, shared_service
from tests.support.stored import StoredBroker
from tests.support.wire import WireClient, publication

TOPIC = "fleet/meters/meter-1/telemetry"


class Publisher:
    """Publishes numbers at one QoS, and forgets none before its exchange is over."""

    def __init__(self, qos: int) -> None:
        self.qos = qos
        self.client: WireClient | None = None
        self.sent = 0
        self.acknowledged: set[int] = set()
        self.refused: set[int] = set()
        self.open: dict[int, int | None] = {}
        """Packet identifier to number; None once PUBREC has come."""

    def connect(self, broker: StoredBroker) -> None:
        self.client = broker.open(shared_device("meter-1"))
        present = self.client.connect(client_id="meter-1", clean_start=False, session_expiry_interval=600)
        if not present.session_present:  # What the broker does not know, it cannot be asked to release.
            self.open = {packet_id: number for packet_id, number in self.open.items() if number is not None}
        for packet_id, number in self.open.items():
            self._send(packet_id, number, dup=True)

    def publish(self) -> None:
        if self.client is None or len(self.open) >= 6:
            return
        packet_id = next(each for each in range(1, 8) if each not in self.open)
        self.open[packet_id] = self.sent
        self.sent += 1
        self._send(packet_id, self.sent - 1, dup=False)

    def _send(self, packet_id: int, number: int | None, *, dup: bool) -> None:
        assert self.client is not None
        if number is None:
            self.client.send(Pubrel(packet_id))
        else:
            self.client.send(publication(TOPIC, b"%d" % number, self.qos, packet_id=packet_id, dup=dup))

    def take(self, packet: Packet) -> None:
        match packet:
            case Puback(packet_id, reason) | Pubrec(packet_id, reason):
                number = self.open[packet_id]
                if number is not None:
                    (self.refused if reason.is_failure else self.acknowledged).add(number)
                if isinstance(packet, Pubrec) and not reason.is_failure:
                    self.open[packet_id] = None
                    self._send(packet_id, None, dup=False)
                else:
                    del self.open[packet_id]
            case Pubcomp(packet_id):
                self.open.pop(packet_id, None)
            case _:
                assert packet.packet_type.name == "DISCONNECT", packet


class Subscriber:
    """Takes messages as the standard says: at QoS 2 by packet identifier, once until PUBREL."""

    def __init__(self, qos: int) -> None:
        self.qos = qos
        self.client: WireClient | None = None
        self.got: list[int] = []
        self.known: set[int] = set()
        self.subscribed = False

    def connect(self, broker: StoredBroker) -> None:
        self.client = broker.open(shared_service("backend"))
        self.client.connect(client_id="backend", clean_start=False, session_expiry_interval=600, receive_maximum=3)
        if not self.subscribed:
            self.client.send(Subscribe(1, (SubscriptionRequest("fleet/#", QoS(self.qos)),)))

    def take(self, packet: Packet) -> None:
        assert self.client is not None
        match packet:
            case Publish(packet_id=packet_id) if packet_id is not None:
                if packet.qos == 2:
                    if packet_id not in self.known:
                        self.known.add(packet_id)
                        self.got.append(int(packet.payload))
                    self.client.send(Pubrec(packet_id))
                else:
                    self.got.append(int(packet.payload))
                    self.client.send(Puback(packet_id))
            case Pubrel(packet_id):
                self.known.discard(packet_id)
                self.client.send(Pubcomp(packet_id))
            case Suback():
                self.subscribed = True
            case _:
                assert packet.packet_type.name == "DISCONNECT", packet


class Story:
    """The three of them."""

    def __init__(self, directory: Path, qos: int) -> None:
        self.broker = StoredBroker(directory)
        self.publisher, self.subscriber = Publisher(qos), Subscriber(qos)
        for each in (self.publisher, self.subscriber):
            each.connect(self.broker)
        self.settle()
        assert self.subscriber.subscribed
        self.broker.held = True

    def exchange(self, who: Publisher | Subscriber, most: int = 1000) -> bool:
        """Let *who* take packets that have come; return whether there were any."""
        client = who.client
        count = 0
        while client is not None and client.transport.packets and count < most:
            who.take(client._decode(client.transport.packets.popleft()))
            count += 1
        if client is not None and client.closed:
            who.client = None
        return count > 0

    def step(self, kind: str) -> None:
        who = self.subscriber if kind.startswith("subscriber") else self.publisher
        match kind.rpartition(" ")[2]:
            case "publishes":
                self.publisher.publish()
            case "reads":
                self.exchange(who, 2)
            case "breaks":
                if who.client is not None:
                    who.client.vanish()  # What had been written to it is lost on the way.
                    who.client = None
            case "connects":
                if who.client is None:
                    who.connect(self.broker)
            case "writes":
                self.broker.write()
            case "fails":
                if self.broker.journal.dirty or self.broker.journal.failed:
                    self.broker.fail()
            case "dies":
                self.broker = self.broker.killed()
                self.broker.held = True
                self.publisher.client = self.subscriber.client = None

    def settle(self) -> None:
        """Let everybody connect and finish."""
        self.broker.held = False
        self.broker.settle()
        for _ in range(200):
            for each in (self.publisher, self.subscriber):
                if each.client is None:
                    each.connect(self.broker)
            if not (self.exchange(self.publisher) | self.exchange(self.subscriber)):
                return
        raise AssertionError("it does not come to rest")


STEPS = [
    *("publisher publishes", "publisher reads", "subscriber reads", "broker writes"),
    *("publisher breaks", "publisher connects", "subscriber breaks", "subscriber connects"),
    *("broker fails", "broker dies"),
]
FAILING = ["broker fails", "publisher publishes", "broker fails", "subscriber reads"] * 2
WEIGHTED = STEPS[:4] * 4 + STEPS[4:8] * 2 + STEPS[8:]


@examples(60, of=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(WEIGHTED), min_size=30, max_size=70))
def test_a_message_at_qos2_arrives_once_and_in_order(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        story = Story(Path(directory), 2)
        for step in steps:
            story.step(step)
        story.settle()
        story.broker.close()
    got, publisher = story.subscriber.got, story.publisher
    assert len(got) == len(set(got)), "doubled"
    if "broker fails" not in steps:  # A refusal that was lost on its way lets later messages overtake.
        assert got == sorted(got), "out of order"
    assert set(got) == set(range(publisher.sent)) - publisher.refused
    assert publisher.acknowledged == set(got)
    assert publisher.open == {}
    assert story.subscriber.known == set()
    session = story.broker.engine.registry.find(DOMAIN, Role.SERVICE, "backend")
    assert session is not None
    assert list(session.deliveries()) == []


@examples(60, of=200, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(WEIGHTED + FAILING), min_size=30, max_size=70))
def test_what_is_acknowledged_at_qos1_arrives(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        story = Story(Path(directory), 1)
        for step in steps:
            story.step(step)
        story.settle()
        story.broker.close()
    got, publisher = set(story.subscriber.got), story.publisher
    assert publisher.acknowledged <= got, "lost"
    assert not publisher.refused & got, "refused, and delivered all the same"
    assert publisher.acknowledged | publisher.refused == set(range(publisher.sent))
    assert publisher.open == {}
