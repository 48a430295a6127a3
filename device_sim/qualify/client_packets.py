"""What a client may send, and when. The codec alone does not tell: it reads the packets of both sides, in any order.

Rules
-----
1. Only what the standard forbids to every client is wrong; what this broker would not like is no noise.
"""

from __future__ import annotations

from typing import Final

from broker.mqtt.packets import (
    Auth,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    Unsubscribe,
)

_OF_A_CLIENT: Final = (
    Connect, Publish, Puback, Pubrec, Pubrel, Pubcomp, Subscribe, Unsubscribe, Pingreq, Disconnect, Auth,
)  # fmt: skip


def wrong_of_a_client(packet: Packet, *, connected: bool) -> str:
    """Return what is wrong with *packet* from a client; *connected*: it has sent CONNECT. Empty: nothing."""
    name = packet.packet_type.name
    if not isinstance(packet, _OF_A_CLIENT):
        return f"{name}, which only a broker sends"
    if isinstance(packet, Connect) and connected:
        return "CONNECT twice [MQTT-3.1.0-2]"
    if not isinstance(packet, Connect) and not connected:
        return f"{name} before CONNECT [MQTT-3.1.0-1]"
    if isinstance(packet, Publish) and packet.properties.subscription_identifiers:
        return "PUBLISH with a Subscription Identifier [MQTT-3.3.4-6]"
    return ""
