"""A share whose members come, go, take over and begin anew: no message is lost, and at QoS 2 none comes twice.

One member's session is kept throughout, so there is always somebody who may have a message.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.mqtt.codes import ReasonCode
from broker.mqtt.packets import Packet, Puback, Pubcomp, Publish, Pubrec, Pubrel, Subscribe, Unsubscribe
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.examples import examples
from tests.support.pki import DOMAIN
from tests.support.wire import MemoryBroker, WireClient, request

TOPIC = "fleet/meters/meter-1/telemetry"
SHARED = "$share/workers/fleet/#"
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
        self._client.send(Subscribe(1, (request(SHARED, self._qos),)))
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


@examples(60)
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


class Places:
    """Where a share has its members: each in one place, and who has room not among those without."""

    def __init__(self) -> None:
        self.broker = MemoryBroker(max_connects_per_identity=0, flapping_count=0, max_queued_messages=10)
        self.meter = self.broker.device("meter-1")
        self.clients: dict[int, WireClient] = {}

    def do(self, action: str, which: int, number: int) -> None:
        client = self.clients.get(which)
        if action in {"publish", "brief"}:
            expiry = {"message_expiry_interval": 1} if action == "brief" else {}
            for _ in range(number):
                self.meter.publish(TOPIC, b"x", qos=number - 1, **expiry)
        elif action == "connect":
            self.clients[which] = self.broker.service(
                "w", client_id=f"w-{which}", session_expiry_interval=600 * (which > 0), receive_maximum=number
            )
        elif action == "wait":
            self.broker.advance(number)
        elif client is not None and not client.closed:
            getattr(self, action)(client, number)

    def join(self, client: WireClient, number: int) -> None:
        client.send(Subscribe(1, (request(SHARED, number - 1),)))

    def leave(self, client: WireClient, _number: int) -> None:
        client.send(Unsubscribe(1, (SHARED,)))

    def answer(self, client: WireClient, number: int) -> None:
        for each in client.received():
            if isinstance(each, Publish) and each.qos == 1:
                client.send(Puback(each.packet_id or 0))
            elif isinstance(each, Publish) and each.qos:
                refused = ReasonCode.UNSPECIFIED_ERROR if number == 1 else ReasonCode.SUCCESS
                client.send(Pubrec(each.packet_id or 0, refused))
            elif isinstance(each, Pubrel):
                client.send(Pubcomp(each.packet_id))

    def vanish(self, client: WireClient, _number: int) -> None:
        client.vanish()

    def stall(self, client: WireClient, number: int) -> None:
        client.transport.unsent = True
        if number == 1:
            client.connection.choke(self.broker.now)

    def read(self, client: WireClient, _number: int) -> None:
        client.transport.unsent = False
        client.connection.unchoke(self.broker.now)
        client.connection.drained(self.broker.now)
        self.broker.settle()

    def check(self) -> None:
        routes: Any = self.broker.engine.routes
        group: Any = routes.share(Identity(DOMAIN, Role.SERVICE, "w"), SHARED)
        if group is None:
            assert not routes.lagging
            return
        places = [*group._order, *group._full, *group._away, *group._unreachable]
        assert len(places) == len(set(places)) == len(group._members)
        assert set(places) == set(group._members)
        assert routes.lagging._shares == {each: [group] for each in group._full}
        for member, subscription in group._members.items():
            assert member not in group._full or not member.has_room(subscription.qos)
            assert not member.connected or member not in {*group._away, *group._unreachable}


ACTIONS = ("publish", "brief", "connect", "join", "leave", "answer", "vanish", "stall", "read", "wait")
OFTEN = ("publish", "join", "answer")
PLACES = st.tuples(
    st.sampled_from(ACTIONS + OFTEN),
    st.integers(0, MEMBERS - 1),
    st.integers(1, 3),
)


@examples(60, of=150)
@given(st.lists(PLACES, max_size=40))
def test_each_member_has_one_place_and_who_has_room_is_asked(steps: list[tuple[str, int, int]]) -> None:
    places = Places()
    for which in range(MEMBERS):
        places.do("connect", which, 1)
        places.do("join", which, 2)
    for step in steps:
        places.do(*step)
        places.check()
