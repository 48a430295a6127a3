"""The last packet to a client: why it is not let in, or why it is put out, in as many words as it takes.

Rules
-----
1. Never longer than the client's Maximum Packet Size: the sentence is left out first, then the packet.
2. Before MQTT 5 a connection is closed without a word, but for the return code of CONNACK.
"""

from __future__ import annotations

from functools import lru_cache

from broker.admission.refusal import RefusalCode, Refused
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.connect import Connack
from broker.mqtt.disconnect import SERVER_REASONS, Disconnect
from broker.mqtt.errors import PacketError
from broker.mqtt.properties import Properties


def refusal_packet(refusal: Refused, version: ProtocolVersion, maximum: int) -> bytes:
    """Return the CONNACK that says *refusal* in at most *maximum* bytes (0: any number), or nothing."""
    packet = Connack(refusal.reason_code, properties=refusal.told).encode(version)
    if 0 < maximum < len(packet):  # [MQTT-3.2.2-19]
        packet = Connack(refusal.reason_code).encode(version)
    return b"" if 0 < maximum < len(packet) else packet  # [MQTT-3.1.2-24]


def disconnect_packet(reason_code: ReasonCode, told: Properties, maximum: int) -> bytes:
    """Return the DISCONNECT of MQTT 5 with what is *told*, unless it has more than *maximum* bytes then (0: any)."""
    packet = _disconnect(reason_code, told.reason_string, told.user_properties)
    if 0 < maximum < len(packet):  # [MQTT-3.14.2-3]
        packet = Disconnect(reason_code).encode(ProtocolVersion.V5)
    return packet


@lru_cache(64)
def _disconnect(reason_code: ReasonCode, reason: str | None, hints: tuple[tuple[str, str], ...]) -> bytes:
    """Return the packet; a thousand who are put out at once are told the same."""
    told = Properties(reason_string=reason, user_properties=hints)
    return Disconnect(reason_code, told).encode(ProtocolVersion.V5)


def reason_for(error: PacketError) -> ReasonCode:
    """Return what a DISCONNECT can say of *error*: a second CONNECT in an unknown version, for one, has no reason."""
    return error.reason_code if error.reason_code in SERVER_REASONS else ReasonCode.PROTOCOL_ERROR


def refusal_for(error: PacketError, before: Refused | None) -> Refused | None:
    """Return how to refuse a CONNECT with *error*, of a client that TLS has refused *before* or not; None: silently."""
    if error.reason_code is ReasonCode.UNSUPPORTED_PROTOCOL_VERSION:
        return Refused(RefusalCode.UNSUPPORTED, error.reason_code, str(error))  # [MQTT-3.1.2-2]
    if error.version is ProtocolVersion.V5:  # Before, a bad CONNECT is not answered, 3.1.1 [MQTT-3.1.4-1].
        return before or Refused(RefusalCode.BAD_PACKET, reason_for(error), str(error))
    return None
