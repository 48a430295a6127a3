"""Cases 33, 34 and 40: a genuine device sends what the standard forbids.

A broker may answer DISCONNECT 0x81 (Malformed Packet) or 0x82 (Protocol Error): the standard often leaves it open which
of the two a violation is. Before CONNACK it just closes [MQTT-4.13.1-1].
"""

from __future__ import annotations

from dataclasses import replace

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.connect import Connect
from broker.mqtt.packets import Connack, Publish
from broker.mqtt.properties import Properties
from broker.mqtt.wire import encode_frame, encode_string
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible
from device_sim.attack.verdict import CLOSED, Layer, Seen
from device_sim.tls_dial import NotAdmitted

BAD_PACKET = ("mqtt DISCONNECT 0x81", "mqtt DISCONNECT 0x82")
_ANSWER = 5.0
_PUBLISH_QOS3 = 0x36
_MEMORY = 64 * 1024 * 1024
_EVERY_BYTE = bytes(range(256)) * 8

chapter = Chapter()
case = chapter.case


def _bad(name: str, description: str, data: bytes, *also: str, needs: tuple[Feature, ...] = ()) -> None:
    """Add a case in which *data* follows a good CONNECT."""

    async def attempt(scene: Scene) -> Seen:
        client = await scene.admitted(await scene.device())
        try:
            await client.send(data)
            return await client.end(_ANSWER)
        finally:
            client.close()

    chapter.add(name, description, (*BAD_PACKET, *also), attempt, needs=needs)


def _first(name: str, description: str, data: bytes, *expected: str, version: ProtocolVersion | None = None) -> None:
    """Add a case in which *data* comes in the place of CONNECT."""

    async def attempt(scene: Scene) -> Seen:
        paper = await scene.device()
        try:
            client = await scene.dial(scene.context(paper.pem), version=version)
        except NotAdmitted as error:
            raise Impossible(f"a good device is not let in: {error.closure}") from error
        try:
            await client.send(data)
            return await client.answer(Connack, deadline=_ANSWER)
        finally:
            client.close()

    chapter.add(name, description, expected or (CLOSED,), attempt)


@case("33-oversized", "announces a packet of 256 MB and stalls", "mqtt DISCONNECT 0x95", *BAD_PACKET)
async def _oversized(scene: Scene) -> Seen:
    client = await scene.admitted(await scene.device())
    before = scene.broker_memory()
    try:
        await client.send(b"\x30\xff\xff\xff\x7f" + b"\x00\x01a" + bytes(100_000))
        seen = await client.end(_ANSWER)
    finally:
        client.close()
    after = scene.broker_memory()
    if before is not None and after is not None and after - before > _MEMORY:
        return Seen(Layer.MQTT, "memory", f"the broker grew by {(after - before) >> 20} MB", got_in=True)
    return seen


_first("33-oversized-first", "announces a CONNECT of 256 MB and stalls", b"\x10\xff\xff\xff\x7f" + bytes(100_000))

_bad("34-five-byte-length", "a remaining length of five bytes", b"\x30\xff\xff\xff\xff\x01")
_bad("34-reserved-flags", "a SUBSCRIBE with its reserved bits cleared", b"\x80\x06\x00\x01\x00\x00\x00\x00")
_bad("34-qos3", "a PUBLISH of QoS 3", encode_frame(_PUBLISH_QOS3, encode_string("a") + b"\x00\x01\x00"))
_bad("34-bad-utf8", "a topic name that is not UTF-8", encode_frame(0x30, b"\x00\x02\xc3\x28\x00"))
_bad("34-null-in-topic", "a topic name with the null character", encode_frame(0x30, b"\x00\x03a\0b\x00"))
_bad(
    "34-wildcard-topic", "publishes to a wildcard",
    encode_frame(0x30, encode_string("fleet/#") + b"\x00"), "mqtt DISCONNECT 0x90",
)  # fmt: skip
_bad("34-second-connect", "a second CONNECT", Connect(client_id="again", keep_alive=60).encode())
_bad("34-type-0", "the reserved packet type 0", b"\x00\x00")
_bad("34-connack", "a CONNACK, which only brokers send", b"\x20\x03\x00\x00\x00")
_bad(
    "34-property-twice", "the same property twice",
    encode_frame(0x30, encode_string("a") + b"\x04\x01\x00\x01\x00"), needs=(Feature.MQTT5,),
)  # fmt: skip
_bad("34-empty-subscribe", "a SUBSCRIBE without a filter", b"\x82\x03\x00\x01\x00")
_first("34-publish-first", "a PUBLISH before CONNECT", encode_frame(0x30, encode_string("a") + b"\x00"))
_first("34-noise", "noise inside TLS", _EVERY_BYTE)
_first("34-other-protocol", "a CONNECT of the protocol MQTX", b"\x10\x0d\x00\x04MQTX\x05\x02\x00\x3c\x00\x00\x00",
       CLOSED, "mqtt CONNACK 0x84", "mqtt CONNACK 1", version=ProtocolVersion.V311)  # fmt: skip

_bad("40-packet-id-0", "a packet identifier of zero", encode_frame(0x32, encode_string("a") + b"\x00\x00\x00"))


@case("40-topic-alias", "a topic alias over the maximum", "mqtt DISCONNECT 0x94", *BAD_PACKET, needs=(Feature.MQTT5,))
async def _topic_alias(scene: Scene) -> Seen:
    paper = await scene.device()
    name = paper.name
    client = await scene.admitted(paper)
    try:
        packet = Publish(scene.topic(name), b"{}", properties=Properties(topic_alias=0xFFFF))
        await client.send(packet.encode(client.version))
        return await client.end(_ANSWER)
    finally:
        client.close()


@case(
    "40-receive-maximum", "more unfinished QoS 2 messages than the broker takes",
    "mqtt DISCONNECT 0x93", needs=(Feature.MQTT5, Feature.QOS2),
)  # fmt: skip
async def _receive_maximum(scene: Scene) -> Seen:
    paper = await scene.device()
    name = paper.name
    client = await scene.admitted(paper)
    try:
        said = client.connack.properties.receive_maximum if client.connack is not None else None
        if said is None:
            raise Impossible("the broker takes 65,535, which is every packet identifier there is")
        flood = b"".join(
            Publish(scene.topic(name), b"", QoS.EXACTLY_ONCE, packet_id=packet_id).encode(client.version)
            for packet_id in range(1, min(said + 100, 65535))
        )
        await client.send(flood)
        seen = await client.end(_ANSWER)
        return replace(seen, reason=f"it said Receive Maximum {said}; {seen.reason}")
    finally:
        client.close()
