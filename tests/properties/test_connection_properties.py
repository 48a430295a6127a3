"""Any bytes, in any pieces: nothing escapes `receive`, the connection ends legal or closed, and nobody else notices."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from broker.mqtt.codes import ProtocolVersion
from broker.mqtt.packets import Pingreq, Pingresp
from tests.support.bad_packets import BAD_PACKETS
from tests.support.examples import examples
from tests.support.packet_cases import PACKET_CASES
from tests.support.packet_strategies import written_packets
from tests.support.pki import shared_service
from tests.support.wire import V5, V31, V311, MemoryBroker, connect_packet

TOPIC = "fleet/meters/meter-1/telemetry"

versions = st.sampled_from([V31, V311, V5])
# Nonsense that looks like MQTT goes deeper than nonsense that does not.
plausible = st.one_of(
    st.sampled_from([case.data for case in PACKET_CASES]),
    st.sampled_from([bad.data for bad in BAD_PACKETS]),
    versions.flatmap(written_packets),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Draw a packet with one byte changed, taken away or put in."""
    data = bytearray(draw(plausible))
    place = draw(st.integers(0, max(0, len(data) - 1)))
    match draw(st.integers(0, 2)):
        case 0:
            data[place : place + 1] = bytes([draw(st.integers(0, 255))])
        case 1:
            del data[place : place + 1]
        case _:
            data.insert(place, draw(st.integers(0, 255)))
    return bytes(data)


streams = st.lists(plausible | damaged() | st.binary(max_size=30), min_size=1, max_size=6).map(b"".join)


@examples(150, of=400)
@given(version=versions, connected=st.booleans(), data=streams, places=st.lists(st.integers(0, 2000), max_size=6))
def test_no_stream_of_bytes_does_any_harm(
    version: ProtocolVersion, connected: bool, data: bytes, places: list[int]
) -> None:
    broker = MemoryBroker(max_packet_size=5000)
    neighbour = broker.device("meter-1")
    watcher = broker.service("watcher", version=V311)
    watcher.subscribe("fleet/meters/meter-1/#")
    client = (
        broker.service("client", version=version)
        if connected
        else broker.open(shared_service("client"), version=version)
    )
    bounds = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    for start, end in pairwise(bounds):
        client.send_bytes(data[start:end])
    if not client.closed:
        tail = client.connection._tail
        assert tail is None or len(tail) <= 5000
        assert (client.connection.session is not None) == (broker.engine.connected == 3)
    else:
        assert client.connection.session is None
        assert broker.engine.connected == 2
    if connected:
        client.received()
    neighbour.publish(TOPIC, b"still here")
    assert watcher.payloads()[-1] == b"still here"
    neighbour.ping()
    assert Pingresp() in neighbour.received()
    broker.advance(6000)  # The longest keep alive, and half of it.
    assert client.closed or client.connection.version is not V5


@examples(100)
@given(data=streams)
def test_a_good_client_is_served_after_any_stream(data: bytes) -> None:
    broker = MemoryBroker()
    client = broker.device("meter-1")
    client.send_bytes(data)
    back = broker.device("meter-1", clean_start=True)
    back.send(Pingreq())
    assert back.received() == [Pingresp()]
    assert broker.engine.connected == 1


@given(cuts=st.lists(st.integers(1, 60), max_size=10), version=versions)
def test_a_connect_cut_anywhere_is_admitted(cuts: list[int], version: ProtocolVersion) -> None:
    broker = MemoryBroker()
    client = broker.open(shared_service("client"), version=version)
    data = connect_packet(version, client_id="client").encode()
    bounds = sorted({0, len(data), *(place % len(data) for place in cuts)})
    for start, end in pairwise(bounds):
        client.send_bytes(data[start:end])
    assert broker.engine.connected == 1
