"""Cases 33, 34 and 40: a genuine device sends what the standard forbids.

A broker may answer DISCONNECT 0x81 (Malformed Packet) or 0x82 (Protocol Error): the standard often does not say which
of the two applies. Before CONNACK it just closes [MQTT-4.13.1-1].

Rules
-----
1. Exactly one thing is wrong with a packet: it concerns the device's own topic, in its own version, under its own name.
   Otherwise a broker could be credited with detecting something it never checked.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.connect import Connect
from broker.mqtt.framing import decode_length
from broker.mqtt.packets import Connack, Publish
from broker.mqtt.properties import Properties
from broker.mqtt.wire import encode_frame, encode_string
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.issuer import Paper
from device_sim.attack.raw_client import RawClient
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible
from device_sim.attack.verdict import CLOSED, Layer, Seen

BAD_PACKET = ("mqtt DISCONNECT 0x81", "mqtt DISCONNECT 0x82")
_ANSWER = 5.0
_HEAD_START = 0.2
"""Seconds by which who says nothing is connected sooner than who says something wrong."""
_PUBLISH_QOS3 = 0x36
_MEMORY = 64 * 1024 * 1024
_EVERY_ALIAS = 0xFFFF
_EVERY_BYTE = bytes(range(256)) * 8

chapter = Chapter()
case = chapter.case


@dataclass(frozen=True, slots=True)
class _Own:
    """The parts of a bad packet, so that only one thing is wrong with it: the device's own topics and version."""

    connect: Connect
    topic: bytes
    """A topic that the device may publish to, as an encoded string."""
    commands: bytes
    """A filter that it may subscribe to."""
    properties: bytes
    """An empty property list, in versions that have one."""

    @classmethod
    def of(cls, scene: Scene, name: str) -> _Own:
        """Return what belongs to the device *name*."""
        return cls(
            scene.connect(name, keep_alive=600),
            encode_string(scene.topic(name)),
            encode_string(scene.topic(name, "cmd/#")),
            b"\0" if scene.version is ProtocolVersion.V5 else b"",
        )

    def misspelt(self, last: bytes) -> bytes:
        """Return the topic with its end replaced by *last*."""
        return self.topic[: -len(last)] + last


def _bad(
    name: str, description: str, made: Callable[[_Own], bytes], *also: str, needs: tuple[Feature, ...] = ()
) -> None:
    """Add a case in which *made* of a good device's own parts follows its CONNECT."""

    async def attempt(scene: Scene) -> Seen:
        paper = await scene.device()
        own = _Own.of(scene, paper.name)
        client = await scene.admitted(paper, own.connect)
        try:
            started = time.monotonic()
            await client.send(made(own))
            return (await client.end(scene.at_most(_ANSWER))).since(started)
        finally:
            client.close()

    chapter.add(name, description, (*BAD_PACKET, *also), attempt, needs=needs)


async def _beside_who_says_nothing(scene: Scene, made: Callable[[_Own], bytes], *, framed: bool) -> tuple[Seen, bool]:
    """Return the answer to what is *made*, and whether another device that says nothing was closed as well by then."""
    paper, other = await scene.device(), await scene.device()
    silent, client = await _dialled(scene, other, paper)
    client.either_form = True
    try:
        started = time.monotonic()
        await client.send(made(_Own.of(scene, paper.name)), framed=framed)
        seen = (await client.answer(Connack, deadline=scene.at_most(_ANSWER))).since(started)
        return seen, seen.matches(CLOSED) and not (await silent.end(0.0)).got_in
    finally:
        client.close()
        silent.close()


async def _dialled(scene: Scene, silent: Paper, other: Paper) -> tuple[RawClient, RawClient]:
    """Return connections of *silent* and, begun a little later, of *other*; raise what `Entry.dialled` raises.

    The silent one comes first, so that a broker which closes whoever says nothing closes it first. But the other one
    does not wait until it is there: across a long link it would then have waited longer than many a broker does.
    """
    dialling = [asyncio.ensure_future(scene.dialled(silent))]
    try:
        await asyncio.sleep(_HEAD_START)
        dialling.append(asyncio.ensure_future(scene.dialled(other)))
        one, two = await asyncio.gather(*dialling)
    except BaseException:
        for each in dialling:
            each.cancel()
        for ended in await asyncio.gather(*dialling, return_exceptions=True):
            if isinstance(ended, RawClient):
                ended.close()
        raise
    return one, two


def instead_of_connect(
    to: Chapter, name: str, description: str, made: Callable[[_Own], bytes], *expected: str, framed: bool = True
) -> None:
    """Add a case *to* a chapter in which *made* of a good device's own parts takes the place of CONNECT.

    Another device says nothing meanwhile: who is closed no sooner than that one was not closed for what it sent. Tried
    twice before that is said: on a slow machine an end may be seen late, and never too soon.
    *framed* as for `RawClient.send`.
    """

    async def attempt(scene: Scene) -> Seen:
        seen, was_silence = await _beside_who_says_nothing(scene, made, framed=framed)
        if was_silence:
            seen, was_silence = await _beside_who_says_nothing(scene, made, framed=framed)
        return replace(seen, code=f"{seen.code}, like one that says nothing") if was_silence else seen

    to.add(name, description, expected or (CLOSED,), attempt)


def _first(name: str, description: str, made: Callable[[_Own], bytes], *expected: str) -> None:
    instead_of_connect(chapter, name, description, made, *expected)


def _property(content: bytes) -> bytes:
    """Return a property list with one property."""
    return bytes((len(content),)) + content


def _with_null(connect: bytes, name: str) -> bytes:
    """Return *connect* with a client identifier that continues behind a null character after *name*."""
    _, start = decode_length(connect, 1)
    longer = f"{name}\0x".encode()
    body = connect[start:].replace(encode_string(name), len(longer).to_bytes(2) + longer, 1)
    return encode_frame(connect[0], body)


def _with_will_flag(connect: bytes) -> bytes:
    """Return *connect* with the flag of a will, which does not follow."""
    flags = connect.index(b"MQTT") + 5
    return connect[:flags] + bytes([connect[flags] | 0x04]) + connect[flags + 1 :]


@case("33-oversized", "announces a packet of 256 MB, and sends nothing more", "mqtt DISCONNECT 0x95", *BAD_PACKET)
async def _oversized(scene: Scene) -> Seen:
    paper = await scene.device()
    client = await scene.admitted(paper)
    before = scene.target.broker_memory()
    try:
        await client.send(b"\x30\xff\xff\xff\x7f" + _Own.of(scene, paper.name).topic + bytes(100_000))
        seen = await client.end(scene.at_most(_ANSWER))
    finally:
        client.close()
    after = scene.target.broker_memory()
    if before is not None and after is not None and after - before > _MEMORY:
        return Seen(Layer.MQTT, "memory", f"the broker grew by {(after - before) >> 20} MB", got_in=True)
    return seen


_first("33-oversized-first", "announces a CONNECT of 256 MB, and sends nothing more",
       lambda _: b"\x10\xff\xff\xff\x7f" + bytes(100_000))  # fmt: skip

_bad(
    "34-five-byte-length", "sends a packet with a Remaining Length of five bytes", lambda _: b"\x30\xff\xff\xff\xff\x01"
)
_bad("34-reserved-flags", "sends a SUBSCRIBE with its reserved flags cleared",
     lambda own: encode_frame(0x80, b"\x00\x01" + own.properties + own.commands + b"\x00"))  # fmt: skip
_bad("34-qos3", "sends a PUBLISH with QoS 3",
     lambda own: encode_frame(_PUBLISH_QOS3, own.topic + b"\x00\x01" + own.properties))  # fmt: skip
_bad("34-bad-utf8", "publishes to a topic name that is not UTF-8",
     lambda own: encode_frame(0x30, own.misspelt(b"\xc3\x28") + own.properties))  # fmt: skip
# Decoded leniently, the first is a slash: behind a policy that saw none, it leads to another device's topic.
_bad("34-overlong-utf8", "publishes to a topic name with an overlong slash",
     lambda own: encode_frame(0x30, own.misspelt(b"\xc0\xaf") + own.properties))  # fmt: skip
_bad("34-surrogate", "publishes to a topic name with half a surrogate pair",
     lambda own: encode_frame(0x30, own.misspelt(b"\xed\xa0\x80") + own.properties))  # fmt: skip
_bad("34-null-in-topic", "publishes to a topic name with a null character",
     lambda own: encode_frame(0x30, own.misspelt(b"\0y") + own.properties))  # fmt: skip
_bad("34-wildcard-topic", "publishes to a topic name with a wildcard",
     lambda own: encode_frame(0x30, own.misspelt(b"/#") + own.properties), "mqtt DISCONNECT 0x90")  # fmt: skip
_bad("34-second-connect", "sends a second CONNECT", lambda own: own.connect.encode())
_bad("34-type-0", "sends a packet of the reserved type 0", lambda _: b"\x00\x00")
_bad(
    "34-connack",
    "sends a CONNACK, which only brokers may send",
    lambda own: encode_frame(0x20, b"\0\0" + own.properties),
)
_bad(
    "34-property-twice", "sends the same property twice",
    lambda own: encode_frame(0x30, own.topic + b"\x04\x01\x00\x01\x00"), needs=(Feature.MQTT5,),
)  # fmt: skip
_bad(
    "34-response-wildcard", "publishes with a response topic that is a wildcard",  # [MQTT-3.3.2-14]
    lambda own: encode_frame(0x30, own.topic + _property(b"\x08" + own.commands)), "mqtt DISCONNECT 0x90",
    needs=(Feature.MQTT5,),
)  # fmt: skip
_bad(
    "34-subscription-identifier", "publishes with a subscription identifier, as only brokers may",  # [MQTT-3.3.4-6]
    lambda own: encode_frame(0x30, own.topic + _property(b"\x0b\x01")), needs=(Feature.MQTT5,),
)  # fmt: skip
_bad(
    "34-auth", "sends an AUTH, and has named no method",  # [MQTT-4.12.0-7]
    lambda _: encode_frame(0xF0, b"\x18\x00"), "mqtt DISCONNECT 0x8c", needs=(Feature.MQTT5,),
)  # fmt: skip
_bad("34-empty-subscribe", "sends a SUBSCRIBE without a filter",
     lambda own: encode_frame(0x82, b"\x00\x01" + own.properties))  # fmt: skip
_bad("34-string-too-long", "publishes to a topic name that is longer than the packet",
     lambda own: encode_frame(0x30, b"\xff\xf0" + own.topic[2:]))  # fmt: skip
_bad("34-properties-too-long", "sends a PUBLISH with properties that are longer than the packet",
     lambda own: encode_frame(0x30, own.topic + b"\x7f\x01\x00"), needs=(Feature.MQTT5,))  # fmt: skip
_first("34-connect-cut", "sends a CONNECT that ends before the will which it announces",
       lambda own: _with_will_flag(own.connect.encode()), CLOSED, "mqtt CONNACK 0x81", "mqtt CONNACK 0x82")  # fmt: skip
# Where strings end at a null character, it is its own name, and another's would do as well [MQTT-1.5.4-2].
_first("34-null-in-client-id", "sends a client identifier with a null character behind its own name",
       lambda own: _with_null(own.connect.encode(), own.connect.client_id),
       CLOSED, "mqtt CONNACK 0x81", "mqtt CONNACK 0x82", "mqtt CONNACK 0x85")  # fmt: skip
_first("34-publish-first", "sends a PUBLISH before CONNECT", lambda own: encode_frame(0x30, own.topic + own.properties))
_first("34-noise", "sends random bytes inside TLS", lambda _: _EVERY_BYTE)
_first("34-other-protocol", "sends a CONNECT with the protocol name MQTX",
       lambda own: own.connect.encode().replace(b"MQTT", b"MQTX", 1),
       CLOSED, "mqtt CONNACK 0x84", "mqtt CONNACK 1")  # fmt: skip

_bad("40-packet-id-0", "sends packet identifier zero",
     lambda own: encode_frame(0x32, own.topic + b"\x00\x00" + own.properties))  # fmt: skip


@case(
    "40-topic-alias",
    "uses a topic alias above the broker's maximum",
    "mqtt DISCONNECT 0x94",
    *BAD_PACKET,
    needs=(Feature.MQTT5,),
)
async def _topic_alias(scene: Scene) -> Seen:
    paper = await scene.device()
    name = paper.name
    client = await scene.admitted(paper)
    try:
        most = client.connack.properties.topic_alias_maximum or 0 if client.connack is not None else 0
        if most == _EVERY_ALIAS:
            raise Impossible("the broker takes 65,535, which is every topic alias there is")
        packet = Publish(scene.topic(name), b"{}", properties=Properties(topic_alias=most + 1))
        await client.send(packet.encode(client.version))
        return await client.end(scene.at_most(_ANSWER))
    finally:
        client.close()


@case(
    "40-receive-maximum", "has more QoS 2 messages in flight than the broker's Receive Maximum",
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
        seen = await client.end(scene.at_most(_ANSWER))
        return replace(seen, reason=f"it said Receive Maximum {said}; {seen.reason}")
    finally:
        client.close()
