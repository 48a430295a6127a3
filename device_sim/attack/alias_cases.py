"""Cases 11 and 12 of `fleet-sim delivery`: topic aliases, those a device uses and those the broker uses towards it.

MQTT 5 §3.3.2.3.4 and §3.3.4. A wrong alias is a protocol error: the broker must close, and should say why (§4.13.1). A
broker whose CONNACK allows no alias owes none of 11; one that uses none complies with 12.
"""

from __future__ import annotations

from typing import Any

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.packets import Disconnect, Pingresp, Publish
from broker.mqtt.properties import Properties
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import NOTHING, GoodClient, Parties
from device_sim.attack.owed import exactly, owed
from device_sim.attack.target import BrokenPromise, Impossible

_V5 = (Feature.MQTT5,)
_MANY = 32
_HIGHEST = 0xFFFF
_TAKES = 2
_SUFFIXES = ("telemetry", "state")
_COMMANDS = ("open", "shut", "step")
_WRONG = frozenset({ReasonCode.TOPIC_ALIAS_INVALID, ReasonCode.PROTOCOL_ERROR, ReasonCode.MALFORMED_PACKET})
"""Valid codes for a wrong alias: the standard's own, and the two for any error."""

chapter = Chapter()


def _alias(number: int) -> Properties:
    return Properties(topic_alias=number)


# 11: aliases that a device uses


async def _publisher(parties: Parties, **fields: Any) -> tuple[GoodClient, GoodClient, int]:
    """Return a listener to everything a device says, that device, and how many aliases it may use."""
    device = await parties.device(**fields)
    most = device.told.topic_alias_maximum or 0
    if not most:
        raise Impossible("the broker takes no topic aliases: CONNACK has no Topic Alias Maximum")
    listener = await parties.service()
    await listener.subscribe(parties.topic(device, "#"), QoS.AT_LEAST_ONCE)
    return listener, device, most


async def _came(parties: Parties, listener: GoodClient, device: GoodClient, suffixes: list[str]) -> None:
    """Return when numbered messages at the topics of *device* with these *suffixes* have reached *listener*."""
    await exactly(listener, _numbered(len(suffixes)), "what was published by aliases")
    topics = [each.topic for each in listener.came]
    for came, suffix in zip(topics, suffixes, strict=True):
        if came != parties.topic(device, suffix):
            raise BrokenPromise(f"published to {parties.topic(device, suffix)} by an alias, it came at {came}")


def _numbered(count: int) -> list[bytes]:
    return [f"{number:03d}".encode() for number in range(count)]


@owed(
    chapter,
    "11-alias",
    "publishes with a topic and an alias, and then with the alias alone: both messages arrive at that topic",
    "MQTT-3.3.2-12, §3.3.4",
    needs=_V5,
)
async def _by_alias(parties: Parties) -> None:
    listener, device, _ = await _publisher(parties)
    for payload, suffix in zip(_numbered(3), ("telemetry", "", ""), strict=True):
        topic = parties.topic(device, suffix) if suffix else ""
        qos = QoS.AT_MOST_ONCE if payload.endswith(b"2") else QoS.AT_LEAST_ONCE
        await device.publish(topic, payload, qos, properties=_alias(1))
    await _came(parties, listener, device, ["telemetry"] * 3)


@owed(chapter, "11-alias-each", "uses every alias up to the maximum: each stands for its own topic",
      "MQTT-3.3.2-12", needs=_V5)  # fmt: skip
async def _each_alias(parties: Parties) -> None:
    listener, device, most = await _publisher(parties)
    aliases = sorted({*range(1, min(most, _MANY)), most})
    suffixes = [_SUFFIXES[number % 2] for number in range(len(aliases))]
    payloads = _numbered(2 * len(aliases))
    for number, (alias, suffix) in enumerate(zip(aliases, suffixes, strict=True)):
        await device.publish(parties.topic(device, suffix), payloads[number], properties=_alias(alias))
    for number, alias in enumerate(aliases, len(aliases)):
        await device.publish("", payloads[number], properties=_alias(alias))
    await _came(parties, listener, device, suffixes * 2)


@owed(
    chapter, "11-alias-remade", "gives an alias another topic: it stands for that one from then on", "§3.3.4", needs=_V5
)
async def _remade(parties: Parties) -> None:
    listener, device, _ = await _publisher(parties)
    suffixes = ["telemetry", "telemetry", "state", "state"]
    for payload, suffix in zip(_numbered(4), ("telemetry", "", "state", ""), strict=True):
        topic = parties.topic(device, suffix) if suffix else ""
        await device.publish(topic, payload, properties=_alias(1))
    await _came(parties, listener, device, suffixes)


async def _refused(listener: GoodClient, device: GoodClient, bad: Publish, what: str) -> None:
    """Send *bad*; raise `BrokenPromise` if its sender is not disconnected for *what* it is, or if it is delivered."""
    answer = await device.taken(bad)
    if isinstance(answer, Pingresp):
        raise BrokenPromise(f"{what} was taken: the connection has to be closed")
    await listener.settled()
    if bad.payload in listener.payloads:
        raise BrokenPromise(f"{what} was delivered to {listener.came[-1].topic}")
    if isinstance(answer, Disconnect) and answer.reason_code not in _WRONG:
        raise BrokenPromise(f"DISCONNECT 0x{answer.reason_code:02x} was the answer to {what}", advised=True)
    if not isinstance(answer, Disconnect):
        raise BrokenPromise(f"{what}: closed without a DISCONNECT that says why", advised=True)


@owed(
    chapter,
    "11-alias-forgotten",
    "reconnects and uses an alias of the last connection: it is disconnected, and nothing is delivered",
    "MQTT-3.3.2-7, §3.3.4",
    needs=_V5,
)
async def _forgotten(parties: Parties) -> None:
    listener, device, _ = await _publisher(parties, keeps=True)
    await device.subscribe(parties.topic(device, "cmd/#"), QoS.AT_LEAST_ONCE)
    await device.publish(parties.topic(device, "telemetry"), b"first", properties=_alias(1))
    device.cut()
    device = await parties.returned(device)
    await _refused(listener, device, Publish("", b"by alias", properties=_alias(1)), "an alias of the last connection")


def _wrong(name: str, description: str, what: str, over: int | None, topic: str) -> None:
    @owed(chapter, name, description, "§3.3.4", needs=_V5)
    async def _(parties: Parties) -> None:
        listener, device, most = await _publisher(parties)
        alias = most + 1 if over is None else over
        if alias > _HIGHEST:
            raise Impossible("the broker takes 65,535 aliases, which is every one that there is")
        at = parties.topic(device, topic) if topic else ""
        await _refused(listener, device, Publish(at, b"by alias", properties=_alias(alias)), what)


_wrong("11-alias-0", "uses alias 0: it is disconnected, and nothing is delivered", "alias 0", 0, "telemetry")
_wrong("11-alias-over", "uses an alias above the broker's maximum: it is disconnected, and nothing is delivered",
       "an alias over the maximum", None, "telemetry")  # fmt: skip
_wrong("11-alias-unknown", "uses an alias that has no topic: it is disconnected, and nothing is delivered",
       "an alias without a topic", 1, "")  # fmt: skip


# 12: aliases that the broker uses towards a device


async def _commanded(parties: Parties, device: GoodClient, rounds: int = 3) -> list[tuple[str, bytes]]:
    """Send commands on several topics, in *rounds*; return topics and payloads."""
    sender = await parties.service("sender")
    sent = []
    for number in range(rounds):
        for command in _COMMANDS:
            topic, payload = parties.topic(device, f"cmd/{command}"), f"{command} {number} {sender.name}".encode()
            await sender.publish(topic, payload)
            sent.append((topic, payload))
    return sent


async def _at_their_topics(device: GoodClient, sent: list[tuple[str, bytes]]) -> None:
    await exactly(device, [payload for _, payload in sent], "its commands")
    for came, (topic, _) in zip(device.came, sent, strict=True):
        if came.topic != topic:
            raise BrokenPromise(f"published to {topic}, it came at {came.topic}")


@owed(
    chapter,
    "12-alias-out",
    "has a Topic Alias Maximum of two, and gets messages at three topics: "
    "no other alias is used, and each message has its topic",
    "MQTT-3.3.2-11, MQTT-3.1.2-26",
    needs=_V5,
)
async def _out(parties: Parties) -> None:
    device = await parties.device(topic_alias_maximum=_TAKES)
    await device.subscribe(parties.topic(device, "cmd/#"), QoS.AT_LEAST_ONCE)
    await _at_their_topics(device, await _commanded(parties, device))


@owed(chapter, "12-alias-out-none", "has a Topic Alias Maximum of zero: no alias is used", "MQTT-3.1.2-27", needs=_V5)
async def _out_none(parties: Parties) -> None:
    device = await parties.device(topic_alias_maximum=0)
    await device.subscribe(parties.topic(device, "cmd/#"), QoS.AT_LEAST_ONCE)
    await _at_their_topics(device, await _commanded(parties, device))


@owed(
    chapter,
    "12-alias-out-again",
    "loses its connection with messages that were sent by alias: they come again with their topics",
    "MQTT-3.3.2-7",
    needs=_V5,
)
async def _out_again(parties: Parties) -> None:
    device = await parties.device(keeps=True, topic_alias_maximum=_TAKES, answers=NOTHING)
    await device.subscribe(parties.topic(device, "cmd/#"), QoS.AT_LEAST_ONCE)
    sent = await _commanded(parties, device, rounds=2)
    await device.until_came(len(sent), "its commands never came")
    device.cut()
    device = await parties.returned(device, topic_alias_maximum=_TAKES)
    await _at_their_topics(device, sent + await _commanded(parties, device, rounds=1))


@owed(chapter, "12-alias-out-no-more", "reconnects with a Topic Alias Maximum of zero: no alias is used any more",
      "MQTT-3.1.2-27", needs=_V5)  # fmt: skip
async def _out_no_more(parties: Parties) -> None:
    device = await parties.device(keeps=True, topic_alias_maximum=_TAKES, answers=NOTHING)
    await device.subscribe(parties.topic(device, "cmd/#"), QoS.AT_LEAST_ONCE)
    sent = await _commanded(parties, device, rounds=2)
    await device.until_came(len(sent), "its commands never came")
    device.cut()
    device = await parties.returned(device)
    await _at_their_topics(device, sent + await _commanded(parties, device, rounds=1))
