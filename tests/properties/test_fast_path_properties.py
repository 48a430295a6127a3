"""The fast way writes what the slow way writes: to everybody, in the same order, for any stream, cut anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.connection.connection import ClientConnection
from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.packets import Pingreq, Puback, Publish, SubscriptionRequest
from broker.mqtt.properties import Properties
from tests.support.examples import examples
from tests.support.pki import shared_service
from tests.support.plain import PlainConnection
from tests.support.wire import V5, V311, MemoryBroker, WireClient, request

ALLOWED = ("fleet/m/1/cmd/a", "fleet/m/1/cmd/b/é", "fleet/m/2/cmd", "fleet/m//cmd/")
TOPICS = ALLOWED * 3 + ("fleet/m/1/state", "fleet/m", "$SYS/x")
FILTERS = (
    "fleet/#",
    "fleet/#",
    "fleet/+/+/cmd/#",
    "fleet/+/1/cmd/#",
    "fleet/m/2/cmd",
    "fleet/m/1/cmd/a",
    "fleet/m/+/cmd/+/é",
    "fleet/m//cmd/",
)

subscriptions = st.lists(
    st.builds(
        request,
        st.sampled_from(FILTERS),
        st.integers(0, 1),
        no_local=st.sampled_from([False, False, True]),
        retain_as_published=st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


@dataclass(frozen=True)
class Listener:
    """A subscriber: how it connects, what it subscribes to, whether it has gone away."""

    version: ProtocolVersion
    requests: list[SubscriptionRequest]
    identifier: int | None
    properties: dict[str, int]
    away: bool


listeners = st.builds(
    Listener,
    st.sampled_from([V311, V5]),
    subscriptions,
    st.none() | st.none() | st.integers(1, 300),
    st.fixed_dictionaries(
        {}, optional={"receive_maximum": st.integers(1, 3), "maximum_packet_size": st.integers(40, 120)}
    )
    | st.just({}),
    st.sampled_from([False, False, True]),
)

# Nothing, or a packet that ends the connection: a topic that overruns, QoS 3, type 0, packet identifier 0.
BAD = (
    b"",
    b"",
    b"\x30\x01\x00",
    b"\x36\x05\x00\x01a\x00\x01",
    b"\x00\x00",
    b"\x32\x12\x00\x0dfleet/m/2/cmd\x00\x00\x00",
)

user_properties = st.lists(st.tuples(st.text("ab", max_size=2), st.text("é", max_size=2)), max_size=2).map(tuple)
message_properties = st.builds(
    Properties,
    content_type=st.none() | st.just("text"),
    message_expiry_interval=st.none() | st.integers(0, 9),
    user_properties=user_properties,
)


# Made once: to make and check a strategy for each step takes longer than to draw from it.
kinds = st.sampled_from(["publish"] * 8 + ["acknowledge", "ping"])
topics = st.sampled_from(TOPICS)
payloads = st.binary(max_size=3) | st.binary(min_size=100, max_size=200)
perhaps_properties = st.just(Properties()) | message_properties


@st.composite
def steps(draw: st.DrawFn) -> Publish | Puback | Pingreq:
    """Draw what a well-behaved publisher sends; its own deliveries are acknowledged by number, right or wrong."""
    kind = draw(kinds)
    if kind == "acknowledge":
        return Puback(draw(st.integers(1, 4)))
    if kind == "ping":
        return Pingreq()
    qos = draw(st.integers(0, 1))
    return Publish(
        draw(topics),
        draw(payloads),
        qos,  # type: ignore[arg-type]
        draw(st.booleans()) and draw(st.booleans()),
        draw(st.booleans()) if qos else False,
        draw(st.integers(1, 65535)) if qos else None,
        draw(perhaps_properties),
    )


@dataclass
class Scene:
    """A broker with its subscribers and one publisher, which is a subscriber too."""

    kind: Callable[..., Any]
    version: ProtocolVersion
    own: list[SubscriptionRequest]
    others: list[Listener]
    clients: list[WireClient] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.broker = MemoryBroker(connection_type=self.kind, max_cached_routes=3, max_allowed_topics=4)
        for index, listener in enumerate(self.others):
            client = self.connect(listener.version, f"listener-{index}", listener.properties)
            if listener.requests:
                client.subscribe(*listener.requests, identifier=listener.identifier)
            if listener.away:
                client.vanish()
            self.clients.append(client)
        self.publisher = self.connect(self.version, "publisher", {})
        if self.own:
            self.publisher.subscribe(*self.own)
        self.clients.append(self.publisher)

    def connect(self, version: ProtocolVersion, name: str, properties: dict[str, int]) -> WireClient:
        client = self.broker.open(shared_service(name), version=version)
        asked: dict[str, Any] = properties | {"session_expiry_interval": 1000} if version is V5 else {}
        client.connect(client_id=name, clean_start=False, **asked)
        return client

    def written(self) -> list[list[bytes]]:
        """Return what everybody was written; who was away comes back to get the rest."""
        for index, listener in enumerate(self.others):
            if listener.away:
                back = self.connect(listener.version, f"listener-{index}", listener.properties)
                self.clients.append(back)
        return [list(client.transport.packets) for client in self.clients]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Return *data* in pieces, cut at *places* (counted modulo its length)."""
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(bounds)]


def read_as(packets: list[bytes], places: list[int] | None) -> list[bytes]:
    """Return *packets* as they are read: cut at *places*, or each by itself."""
    return cut(b"".join(packets), places) if places is not None else [packet for packet in packets if packet]


def warm_up(version: ProtocolVersion) -> bytes:
    """Return a message to each permitted topic: the fast way is open to all that follows."""
    return b"".join(Publish(topic).encode(version) for topic in ALLOWED)


@examples(80, of=250)
@given(
    version=st.sampled_from([V311, V5]),
    own=st.just([]) | subscriptions,
    others=st.lists(listeners, min_size=1, max_size=4),
    stream=st.lists(steps(), min_size=4, max_size=25),
    places=st.none() | st.lists(st.integers(0, 10_000), max_size=8),
    bad=st.sampled_from(BAD),
    seconds=st.sampled_from([0, 0, 11]),
)
def test_the_fast_way_writes_what_the_slow_way_writes(
    version: ProtocolVersion,
    own: list[SubscriptionRequest],
    others: list[Listener],
    stream: list[Publish | Puback | Pingreq],
    places: list[int] | None,
    bad: bytes,
    seconds: int,
) -> None:
    fast, slow = (Scene(kind, version, own, others) for kind in (ClientConnection, PlainConnection))
    packets = [warm_up(version), *(packet.encode(version) for packet in stream), bad]
    for piece in read_as(packets, places):
        fast.publisher.send_bytes(piece)
        slow.publisher.send_bytes(piece)
        for scene in (fast, slow):  # Who pings after so long a silence dozes (`broker.sockets.doze`).
            scene.broker.advance(seconds)
    assert fast.written() == slow.written()
    assert fast.publisher.closed == slow.publisher.closed
    counted = ("messages_received", "publishes_denied", "messages_retained", "dropped_too_large", "dropped_queue_full")
    assert [getattr(fast.broker.metrics, name) for name in counted] == [
        getattr(slow.broker.metrics, name) for name in counted
    ]


@examples(50, of=100)
@given(
    version=st.sampled_from([V311, V5]),
    stream=st.lists(steps(), min_size=1, max_size=20),
    places=st.none() | st.lists(st.integers(0, 10_000), max_size=20),
)
def test_where_the_stream_is_cut_does_not_matter(
    version: ProtocolVersion, stream: list[Publish | Puback | Pingreq], places: list[int] | None
) -> None:
    listener = Listener(V5, [request("fleet/#", 1)], None, {}, away=False)
    whole, pieces = (Scene(ClientConnection, version, [], [listener]) for _ in range(2))
    packets = [warm_up(version), *(packet.encode(version) for packet in stream)]
    whole.publisher.send_bytes(b"".join(packets))
    for piece in read_as(packets, places):
        pieces.publisher.send_bytes(piece)
    assert whole.written() == pieces.written()
    if places is None:  # A packet that is cut is counted with each read.
        assert whole.broker.metrics.bytes_received == pieces.broker.metrics.bytes_received
