"""What is on the wire, what waits for its turn, and under which packet identifiers."""

from __future__ import annotations

import pytest

from broker.mqtt.codes import QoS
from broker.mqtt.errors import ProtocolError
from device_sim.link import in_flight
from device_sim.link.in_flight import InFlight
from device_sim.link.link import MOST_QUEUED, NotConnected

ONE, TWO = QoS.AT_LEAST_ONCE, QoS.EXACTLY_ONCE


def sent(flight: InFlight, *packets: bytes) -> list[bytes]:
    """Return which of *packets* may be sent at once."""
    return [packet for packet in packets if flight.is_next(flight.new_packet_id(), ONE, packet)]


def test_no_more_is_on_the_wire_than_allowed_and_the_rest_follows_in_order() -> None:
    flight = InFlight(2)
    assert sent(flight, b"a", b"b", b"c", b"d") == [b"a", b"b"]
    assert flight.acknowledged(2, ONE) == b"c"
    assert sent(flight, b"e") == [], "it is behind the one that waits"
    assert [flight.acknowledged(number, ONE) for number in (1, 3, 4)] == [b"d", b"e", None]
    assert sent(flight, b"f") == [b"f"]


def test_what_was_not_sent_is_not_acknowledged() -> None:
    flight = InFlight(1)
    assert sent(flight, b"a", b"b") == [b"a"]
    with pytest.raises(ProtocolError, match="packet identifier 2: acknowledged, and was not sent at QoS 1"):
        flight.acknowledged(2, ONE)
    with pytest.raises(ProtocolError, match="packet identifier 1: acknowledged, and was not sent at QoS 2"):
        flight.acknowledged(1, TWO)


def test_an_identifier_in_use_is_given_to_nothing_else() -> None:
    flight = InFlight(65_535)
    assert flight.is_next(flight.new_packet_id(), TWO, b"a")
    given = [flight.new_packet_id() for _ in range(65_535)]
    assert given[:2] + given[-2:] == [2, 3, 65_535, 2]


def test_no_more_waits_than_there_is_room_for() -> None:
    flight = InFlight(1)
    for number in range(1 + MOST_QUEUED):
        flight.check_room()
        flight.is_next(flight.new_packet_id(), ONE, b"%d" % number)
    with pytest.raises(NotConnected, match=f"not sent: {MOST_QUEUED} messages wait for the broker already"):
        flight.check_room()
    assert flight.acknowledged(1, ONE) == b"1"
    flight.check_room()


def test_whoever_has_every_identifier_on_the_wire_waits_for_one() -> None:
    """A broker that acknowledges nothing: looking for one that is free would never end."""
    flight = InFlight(in_flight.LAST_PACKET_ID)
    for _ in range(in_flight.LAST_PACKET_ID - 1):
        flight.check_room()
        flight.is_next(flight.new_packet_id(), ONE, b"")
    with pytest.raises(NotConnected, match="65534 messages wait for the broker already"):
        flight.check_room()
    assert flight.new_packet_id() == in_flight.LAST_PACKET_ID, "one is left for a subscription"
