"""What the stand sends to a device that subscribes: commands, as a broker may send them.

Rules
-----
1. Each message is one that the standard allows, for its subscription and within the device's own limits: its Maximum
   Packet Size, and its Receive Maximum for all that is under way on the connection, in answer to all its SUBSCRIBEs.
2. They are few and odd: an empty payload, one that is not text, a long one; each QoS that the device asked for; a topic
   alias, if the device takes those.
"""

from __future__ import annotations

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.packets import Connect, Puback, Pubcomp, Publish, Pubrec, Subscribe
from broker.mqtt.properties import Properties
from device_sim.qualify.attempt import Attempt

_LONG = 20_000
PAYLOADS = (b"1", b"", bytes(range(256)), b"x" * _LONG)
_FIRST_ID = 101
_RECEIVE_MAXIMUM = 65_535
"""Of a device that names none."""


def commands(attempt: Attempt, connect: Connect, subscribe: Subscribe) -> list[Publish]:
    """Return the messages for *subscribe*, of the device that sent *connect* and was sent others in *attempt*."""
    v5 = connect.protocol_version is ProtocolVersion.V5
    asked = connect.properties
    made: list[Publish] = []
    number = max((each.packet_id for each in _sent(attempt) if each.packet_id is not None), default=_FIRST_ID - 1) + 1
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
    room = None if not v5 else (asked.receive_maximum or _RECEIVE_MAXIMUM) - len(_under_way(attempt))
    return _known(_within(fitting, room))


def _sent(attempt: Attempt) -> list[Publish]:
    return [each for each in attempt.sent if isinstance(each, Publish)]


def _under_way(attempt: Attempt) -> set[int]:
    """Return the identifiers of what was sent and not acknowledged to the end."""
    ended = {
        packet.packet_id
        for _, packet in attempt.packets
        if isinstance(packet, Puback | Pubcomp) or (isinstance(packet, Pubrec) and packet.reason_code.is_failure)
    }
    return {each.packet_id for each in _sent(attempt) if each.packet_id is not None} - ended


def _within(messages: list[Publish], room: int | None) -> list[Publish]:
    """Return *messages* without those for which there is no *room* (None: any): they are all sent at once."""
    kept: list[Publish] = []
    identifiers = 0
    for each in messages:
        if each.packet_id is not None:
            if room is not None and identifiers >= room:
                continue
            identifiers += 1
        kept.append(each)
    return kept


def _known(messages: list[Publish]) -> list[Publish]:
    """Return *messages* without those by an alias that none before them has said the name for."""
    kept: list[Publish] = []
    known = False
    for each in messages:
        if each.topic:
            known = each.properties.topic_alias is not None
        elif not known:
            continue
        kept.append(each)
    return kept


def _below(topic_filter: str) -> str | None:
    """Return a topic that *topic_filter* matches; None for a shared subscription or the server's own topics."""
    if topic_filter.startswith("$"):
        return None
    return topic_filter.replace("#", "set").replace("+", "set")
