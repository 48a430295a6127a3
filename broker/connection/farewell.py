"""The last packet to a client: why it is refused or disconnected, in as many words as fit its Maximum Packet Size.

Rules
-----
1. Never longer than the client's Maximum Packet Size: first the sentence is left out, then the whole packet.
2. A client older than MQTT 5 is told nothing but the return code in CONNACK.
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
    """Return the CONNACK for *refusal* in at most *maximum* bytes (0: no limit), or nothing if none fits."""
    packet = Connack(refusal.reason_code, properties=refusal.told).encode(version)
    if 0 < maximum < len(packet):  # [MQTT-3.2.2-19]
        packet = Connack(refusal.reason_code).encode(version)
    return b"" if 0 < maximum < len(packet) else packet  # [MQTT-3.1.2-24]


def disconnect_packet(reason_code: ReasonCode, told: Properties, maximum: int) -> bytes:
    """Return the MQTT 5 DISCONNECT with the properties *told*; without them if longer than *maximum* (0: no limit)."""
    packet = _disconnect(reason_code, told.reason_string, told.user_properties)
    if 0 < maximum < len(packet):  # [MQTT-3.14.2-3]
        packet = Disconnect(reason_code).encode(ProtocolVersion.V5)
    return packet


@lru_cache(64)
def _disconnect(reason_code: ReasonCode, reason: str | None, hints: tuple[tuple[str, str], ...]) -> bytes:
    """Return the packet, cached: a thousand clients disconnected at once are told the same."""
    told = Properties(reason_string=reason, user_properties=hints)
    return Disconnect(reason_code, told).encode(ProtocolVersion.V5)


def reason_for(error: PacketError) -> ReasonCode:
    """Return the DISCONNECT reason code for *error*; some, like a second CONNECT's unknown version, have none there."""
    return error.reason_code if error.reason_code in SERVER_REASONS else ReasonCode.PROTOCOL_ERROR


def refusal_for(error: PacketError, before: Refused | None) -> Refused | None:
    """Return how to refuse a CONNECT with *error* (None: silently); *before* is the handshake's refusal, if any."""
    if error.reason_code is ReasonCode.UNSUPPORTED_PROTOCOL_VERSION:
        return Refused(RefusalCode.UNSUPPORTED, error.reason_code, str(error))  # [MQTT-3.1.2-2]
    if error.version is ProtocolVersion.V5:  # Older versions get no answer to a bad CONNECT, 3.1.1 [MQTT-3.1.4-1].
        return before or Refused(RefusalCode.BAD_PACKET, reason_for(error), str(error))
    return None
