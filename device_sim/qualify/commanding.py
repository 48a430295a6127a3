"""What the stand sends to a device that subscribes: commands, as a broker may send them.

Rules
-----
1. Each message is one that the standard allows, for its subscription and within the device's own limits: its Maximum
   Packet Size and its Receive Maximum.
2. They are few and odd: an empty payload, one that is not text, a long one; each QoS that the device asked for; a topic
   alias, if the device takes those.
"""

from __future__ import annotations

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.packets import Connect, Publish, Subscribe
from broker.mqtt.properties import Properties

_LONG = 20_000
PAYLOADS = (b"1", b"", bytes(range(256)), b"x" * _LONG)
_FIRST_ID = 101


def commands(connect: Connect, subscribe: Subscribe) -> list[Publish]:
    """Return the messages for *subscribe*, of the device that sent *connect*."""
    v5 = connect.protocol_version is ProtocolVersion.V5
    asked = connect.properties
    made: list[Publish] = []
    number = _FIRST_ID
    for request in subscribe.requests:
        topic = _below(request.filter)
        if topic is None:
            continue
        for qos in (each for each in QoS if each <= request.qos):
            for payload in PAYLOADS:
                made.append(Publish(topic, payload, qos, packet_id=number if qos else None))
                number += 1
        if v5 and asked.topic_alias_maximum:
            for name in (topic, ""):
                properties = Properties(topic_alias=1)
                qos, identifier = (QoS.AT_LEAST_ONCE, number) if request.qos else (QoS.AT_MOST_ONCE, None)
                made.append(Publish(name, b"by alias", qos, packet_id=identifier, properties=properties))
                number += 1
    most = asked.maximum_packet_size if v5 else None
    fitting = [each for each in made if most is None or len(each.encode(connect.protocol_version)) <= most]
    return _within(fitting, asked.receive_maximum if v5 else None)


def _within(messages: list[Publish], receive_maximum: int | None) -> list[Publish]:
    """Return *messages* without those beyond *receive_maximum*: they are all sent at once."""
    if receive_maximum is None:
        return messages
    kept: list[Publish] = []
    identifiers: set[int] = set()
    for each in messages:
        if each.packet_id is not None and each.packet_id not in identifiers:
            if len(identifiers) >= receive_maximum:
                continue
            identifiers.add(each.packet_id)
        kept.append(each)
    return kept


def _below(topic_filter: str) -> str | None:
    """Return a topic that *topic_filter* matches; None for a shared subscription or the server's own topics."""
    if topic_filter.startswith("$"):
        return None
    return topic_filter.replace("#", "set").replace("+", "set")
