"""PUBLISH as an object: for clients, tests, and the paths of the broker where one object per packet is fast enough.

The broker's data path reads PUBLISH by offsets instead (`broker.mqtt.publish`) and must agree with this module.

Does not handle: resolving a Topic Alias; whether the payload is UTF-8 when the Payload Format Indicator says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final, Self

from broker.mqtt.codes import PacketType, ProtocolVersion, QoS
from broker.mqtt.errors import MalformedPacket, ProtocolError
from broker.mqtt.properties import NO_PROPERTIES, Properties, encode_properties, read_properties
from broker.mqtt.topics import check_topic_name
from broker.mqtt.wire import Reader, encode_frame, encode_packet_id, encode_string

_DUP: Final = 0x08
_QOS_SHIFT: Final = 1
_RETAIN: Final = 0x01


@dataclass(frozen=True, slots=True)
class Publish:
    """An Application Message on its way. ``packet_id`` is None at QoS 0; ``topic`` is empty behind a Topic Alias."""

    packet_type: ClassVar[PacketType] = PacketType.PUBLISH

    topic: str
    payload: bytes = field(default=b"", repr=False)
    qos: QoS = QoS.AT_MOST_ONCE
    retain: bool = False
    dup: bool = False
    packet_id: int | None = None
    properties: Properties = NO_PROPERTIES

    @classmethod
    def read(cls, reader: Reader, flags: int, version: ProtocolVersion) -> Self:
        """Take a PUBLISH off *reader*."""
        qos, dup = flags >> _QOS_SHIFT & 3, bool(flags & _DUP)
        if qos > QoS.EXACTLY_ONCE:  # [MQTT-3.3.1-4]
            raise MalformedPacket("QoS 3 does not exist")
        if dup and qos == QoS.AT_MOST_ONCE:  # [MQTT-3.3.1-2]
            raise MalformedPacket("DUP is not allowed with QoS 0")
        topic = reader.string("topic name")  # [MQTT-3.3.2-1]
        packet_id = reader.packet_id() if qos else None  # [MQTT-2.2.1-2]
        v5 = version is ProtocolVersion.V5
        properties = read_properties(reader, PacketType.PUBLISH) if v5 else NO_PROPERTIES
        if topic or not v5:
            check_topic_name(topic)
        elif properties.topic_alias is None:  # §3.3.2.1
            raise ProtocolError("topic name: empty, and there is no topic alias")
        return cls(topic, reader.rest(), QoS(qos), bool(flags & _RETAIN), dup, packet_id, properties)

    def encode(self, version: ProtocolVersion) -> bytes:
        """Return the packet; before MQTT 5 without properties."""
        flags = (_DUP if self.dup else 0) | self.qos << _QOS_SHIFT | (_RETAIN if self.retain else 0)
        body = encode_string(self.topic)
        if self.qos:
            body += encode_packet_id(self.packet_id)
        if version is ProtocolVersion.V5:
            body += encode_properties(self.properties, PacketType.PUBLISH)
        return encode_frame(PacketType.PUBLISH << 4 | flags, body + self.payload)
