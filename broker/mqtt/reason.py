"""Reading a reason code that only certain packets may carry."""

from __future__ import annotations

from collections.abc import Set as AbstractSet

from broker.mqtt.codes import PacketType, ReasonCode
from broker.mqtt.errors import ProtocolError
from broker.mqtt.wire import Reader


def read_reason_code(reader: Reader, allowed: AbstractSet[ReasonCode], packet_type: PacketType) -> ReasonCode:
    """Take a reason code off *reader*; raise `ProtocolError` unless it is one of *allowed*.

    [MQTT-3.2.2-8], [MQTT-3.4.2-1], [MQTT-3.5.2-1], [MQTT-3.6.2-1], [MQTT-3.7.2-1], [MQTT-3.9.3-2], [MQTT-3.11.3-2],
    [MQTT-3.14.2-1], [MQTT-3.15.2-1]: a sender uses one of the packet's own reason codes.
    """
    value = reader.byte("reason code")
    if value not in allowed:
        raise ProtocolError(f"reason code: {value:#04x} is not one of a {packet_type.name} packet")
    return ReasonCode(value)
