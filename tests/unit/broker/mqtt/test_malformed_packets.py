"""What a packet may not be: each rule of the standard broken alone, and the sentence and reason code that answer it."""

from __future__ import annotations

import pytest

from broker.mqtt.codes import ReasonCode
from broker.mqtt.errors import MalformedPacket, PacketError, ProtocolError
from broker.mqtt.packets import decode_packet
from tests.support.bad_packet import BadPacket
from tests.support.bad_packets import BAD_PACKETS


@pytest.mark.parametrize("bad", BAD_PACKETS, ids=lambda bad: bad.rule)
def test_a_broken_rule_is_refused_with_its_reason(bad: BadPacket) -> None:
    with pytest.raises(PacketError) as caught:
        decode_packet(bad.first_byte, bad.body, bad.version)

    assert (caught.value.reason_code, str(caught.value)) == (bad.reason_code, bad.text)


@pytest.mark.parametrize("bad", BAD_PACKETS, ids=lambda bad: bad.rule)
def test_the_kind_of_error_agrees_with_its_reason_code(bad: BadPacket) -> None:
    expected = MalformedPacket if bad.reason_code is ReasonCode.MALFORMED_PACKET else ProtocolError

    with pytest.raises(expected):
        decode_packet(bad.first_byte, bad.body, bad.version)
