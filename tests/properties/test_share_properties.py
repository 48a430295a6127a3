"""A share whose members come, go, take over and begin anew: no message is lost, and at QoS 2 none comes twice.

One member's session is kept throughout, so there is always somebody who may have a message.
"""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.mqtt.packets import Packet, Puback, Pubcomp, Publish, Pubrec, Pubrel, Subscribe
from tests.support.wire import MemoryBroker, WireClient, request

TOPIC = "fleet/meters/meter-1/telemetry"
MEMBERS = 3


class Member:
    """A client of the share, as the standard describes it, that acknowledges when it is told to."""

    def __init__(self, broker: MemoryBroker, name: str, qos: int, expiry: int, got: Counter[bytes]) -> None:
        self._broker = broker
        self._name = name
        self._qos = qos
        self.expiry = expiry
        self._got = got
        self._client: WireClient | None = None
        self._open: list[Publish] = []
        self._known: set[int | None] = set()
        """Packet identifiers of QoS 2 messages before their PUBREL."""

    def connect(self, receive_maximum: int, *, clean_start: bool = False) -> None:
        self.take()
        if clean_start or not self.expiry:
            self._known.clear()
        self._open.clear()
        self._client = self._broker.service(
            "w",
            client_id=f"w-{self._name}",
            clean_start=clean_start,
            session_expiry_interval=self.expiry,
            receive_maximum=receive_maximum,
        )
        self._client.send(Subscribe(1, (request("$share/workers/fleet/#", self._qos),)))
        self.take()

    def vanish(self) -> None:
        self.take()
        if self._client is not None and not self._client.closed:
            self._client.vanish()
        self._open.clear()

    def take(self) -> None:
        """Read what has come."""
        for packet in self._client.received() if self._client is not None else ():
            if isinstance(packet, Publish):
                self._open.append(packet)
                self._got[packet.payload] += self._qos == 1 or packet.packet_id not in self._known
                self._known.add(packet.packet_id)
            elif isinstance(packet, Pubrel):
                self._known.discard(packet.packet_id)
                self._send(Pubcomp(packet.packet_id))

    def acknowledge(self, count: int = 65535) -> bool:
        """Acknowledge the oldest *count*; return whether there was one."""
        self.take()
        done, self._open = self._open[:count], self._open[count:]
        for each in done:
            self._send(Puback(each.packet_id or 0) if self._qos == 1 else Pubrec(each.packet_id or 0))
        self.take()
        return bool(done)

    def _send(self, packet: Packet) -> None:
        if self._client is not None and not self._client.closed:
            self._client.send(packet)


STEP = st.tuples(st.sampled_from("ppppaavcb"), st.integers(0, MEMBERS - 1), st.integers(1, 3))


@settings(max_examples=60)
@given(qos=st.sampled_from([1, 2]), brief=st.sets(st.integers(1, MEMBERS - 1)), steps=st.lists(STEP, max_size=50))
def test_each_message_reaches_a_member(qos: int, brief: set[int], steps: list[tuple[str, int, int]]) -> None:
    broker = MemoryBroker(max_connects_per_identity=0, flapping_count=0)
    got: Counter[bytes] = Counter()
    members = [Member(broker, str(each), qos, 0 if each in brief else 600, got) for each in range(MEMBERS)]
    members[0].connect(1)
    meter = broker.device("meter-1")
    sent = 0
    for action, which, number in steps:
        member = members[which]
        if action == "p":
            meter.publish(TOPIC, b"%d" % sent, qos=qos)
            sent += 1
        elif action == "a":
            member.acknowledge(number)
        elif action == "v":
            member.vanish()
        else:
            member.connect(number, clean_start=action == "b" and which > 0)
    for member in members:
        member.connect(3)
    while sum(member.acknowledge() for member in members):
        pass
    assert sorted(got) == sorted(b"%d" % each for each in range(sent))
    assert qos == 1 or max(got.values(), default=1) == 1
