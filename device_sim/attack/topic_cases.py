"""Cases 35 to 37: a genuine device publishes or subscribes to topics that are not its own.

A case about a message states whether it was delivered, using the order argument of `scene`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Container
from dataclasses import replace

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.connect import Will
from broker.mqtt.packets import (
    Pingreq,
    Pingresp,
    Puback,
    Publish,
    Pubrec,
    Pubrel,
    Subscribe,
    SubscriptionRequest,
)
from broker.mqtt.properties import NO_PROPERTIES, Properties
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import NOWHERE, Chapter, patience
from device_sim.attack.issuer import Paper
from device_sim.attack.raw_client import RawClient
from device_sim.attack.scene import OTHER, SOON, Scene
from device_sim.attack.target import Impossible, Starved
from device_sim.attack.verdict import CLOSED, DELIVERED, NOT_DELIVERED, OPEN, ClosedBy, Layer, Said, Seen

_V311 = ProtocolVersion.V311
_ANSWER = 10.0
_PACKET = 7
_DELAYED = "$delayed/1/"

chapter = Chapter()
case = chapter.case


Chosen = Callable[[Scene, str], str]
"""Returns the topic that a device, by its name, must not write to."""


def _of_another(scene: Scene, _device: str) -> str:
    return scene.topic(scene.fresh("victim"))


def _of_longer_name(scene: Scene, device: str) -> str:
    return scene.topic(f"{device}0")


def _in_other_group(scene: Scene, device: str) -> str:
    return f"fleet/{scene.target.group}{OTHER}/{device}/telemetry"


def _delayed(scene: Scene, device: str) -> str:
    return f"{_DELAYED}{_of_another(scene, device)}"


def _command(scene: Scene, device: str) -> str:
    return scene.topic(device, "cmd/reboot")


def _publishes(
    name: str, description: str, *expected: str, qos: QoS, to: Chosen = _of_another, retain: bool = False,
    version: ProtocolVersion | None = None, needs: tuple[Feature, ...] = (), properties: Properties = NO_PROPERTIES,
    times: int = 1, settles: float = 0.0,
) -> None:  # fmt: skip
    """Add a case that publishes, so many *times*, *to* a topic that the device may not write.

    After *settles* seconds it is looked whether it was delivered.
    """

    async def attempt(scene: Scene) -> Seen:
        await scene.watcher()
        paper = await scene.device()
        device = paper.name
        connect = scene.connect(device, version=version, keep_alive=600)
        client = await scene.admitted(paper, connect)
        try:
            topic, payload = to(scene, device), f"forged by {device}".encode()
            before = await scene.retained(topic) if retain else b""
            packet = Publish(topic, payload, qos, retain, packet_id=_PACKET if qos else None, properties=properties)
            started, answer = time.monotonic(), None
            for _ in range(times):
                await client.send(packet.encode(client.version))
                answer = await client.answer(Puback, Pubrec, deadline=scene.at_most(_ANSWER)) if qos else None
            said = Said(payload, topic.removeprefix(_DELAYED))
            seen = (await _what_came(scene, client, device, said, answer, settles)).since(started)
            return await _or_kept(scene, seen, said, before) if retain else seen
        finally:
            client.close()

    chapter.add(name, description, expected, attempt, needs=(Feature.TOPIC_POLICY, *needs))


async def _what_came(
    scene: Scene, client: RawClient, device: str, said: Said, answer: Seen | None, settles: float = 0.0
) -> Seen:
    """Return whether *said*, to which *client* got this *answer*, was delivered *settles* later; else the answer."""
    await asyncio.sleep(settles)
    if answer is not None and not answer.code.startswith(("PUBACK", "PUBREC")):
        return replace(answer, withheld=said)  # It was closed for this.
    if answer is not None and answer.code.startswith("PUBREC"):
        # A broker may deliver it only when it is released (MQTT 5 §4.3.3): an attacker releases it, refused or not.
        await client.send(Pubrel(_PACKET).encode(client.version))
    fate = await scene.fate(client, device, said, offender=True)
    # Delivery is what counts; otherwise the code in the acknowledgement, if that is a refusal.
    return fate if answer is None or fate.got_in or answer.got_in else replace(answer, withheld=said)


async def _or_kept(scene: Scene, seen: Seen, said: Said, before: bytes) -> Seen:
    """Return *seen*, or that *said* is retained: existing subscribers did not get it, but later ones do.

    *before* is what was retained there before, by an earlier run.
    """
    kept = b"" if seen.got_in else await scene.retained(said.topic)
    if not kept or (kept == before and kept != said.payload):
        return seen
    how = "" if kept == said.payload else ", and altered"
    return Seen(Layer.MQTT, DELIVERED, f"retained, for whoever subscribes next{how}", got_in=True)


_publishes(
    "35-other-topic-qos1", "publishes to another device's topic (QoS 1)", "mqtt PUBACK 0x87", qos=QoS.AT_LEAST_ONCE
)
_publishes("35-other-topic-qos2", "publishes to another device's topic (QoS 2)", "mqtt PUBREC 0x87",
           qos=QoS.EXACTLY_ONCE, needs=(Feature.QOS2,))  # fmt: skip
_publishes("35-other-topic-qos0", "publishes to another device's topic (QoS 0)", NOWHERE, "mqtt DISCONNECT 0x87",
           qos=QoS.AT_MOST_ONCE)  # fmt: skip
_publishes("35-other-topic-311", "publishes to another device's topic (MQTT 3.1.1)", NOWHERE, CLOSED,
           qos=QoS.AT_LEAST_ONCE, version=_V311)  # fmt: skip
_publishes("35-other-topic-again", "publishes to another device's topic three times (QoS 1)", "mqtt PUBACK 0x87",
           qos=QoS.AT_LEAST_ONCE, times=3)  # fmt: skip
_publishes("35-other-topic-properties", "publishes to another device's topic, with properties", "mqtt PUBACK 0x87",
           qos=QoS.AT_LEAST_ONCE, needs=(Feature.MQTT5,),
           properties=Properties(content_type="text/plain", user_properties=(("a", "b"),)))  # fmt: skip
_publishes(
    "35-similar-name",
    "publishes to a topic of a device whose name begins with its own name",
    "mqtt PUBACK 0x87",
    qos=QoS.AT_LEAST_ONCE,
    to=_of_longer_name,
)
_publishes("35-other-group", "publishes to its own name's topic in another group", "mqtt PUBACK 0x87",
           qos=QoS.AT_LEAST_ONCE, to=_in_other_group)  # fmt: skip
_publishes("35-own-command", "publishes a command to itself", "mqtt PUBACK 0x87", qos=QoS.AT_LEAST_ONCE, to=_command)
_publishes("35-delayed", "publishes to another device's topic behind $delayed/1/, which for some brokers means a delay",
           "mqtt PUBACK 0x87", "mqtt PUBACK 0x90", NOWHERE, qos=QoS.AT_LEAST_ONCE, to=_delayed,
           settles=1.5)  # fmt: skip
_publishes("37-retained", "publishes a retained message to another device's topic", "mqtt PUBACK 0x87",
           qos=QoS.AT_LEAST_ONCE, retain=True)  # fmt: skip


@case("35-alias", "publishes to another device's topic by a topic alias", "mqtt PUBACK 0x87", "mqtt DISCONNECT 0x82",
      "mqtt DISCONNECT 0x87", "mqtt DISCONNECT 0x94", needs=(Feature.TOPIC_POLICY, Feature.MQTT5))  # fmt: skip
async def _alias(scene: Scene) -> Seen:
    await scene.watcher()
    paper = await scene.device()
    client = await scene.admitted(paper)
    try:
        if client.connack is None or not client.connack.properties.topic_alias_maximum:
            raise Impossible("the broker takes no topic aliases")
        said = Said(f"forged by {paper.name}".encode(), _of_another(scene, paper.name))
        started, answer, alias = time.monotonic(), None, Properties(topic_alias=1)
        for named in (said.topic, ""):  # First with the topic, which sets the alias, then by the alias alone.
            packet = Publish(named, said.payload, QoS.AT_LEAST_ONCE, packet_id=_PACKET, properties=alias)
            await client.send(packet.encode(client.version))
            answer = await client.answer(Puback, deadline=scene.at_most(_ANSWER))
        return (await _what_came(scene, client, paper.name, said, answer)).since(started)
    finally:
        client.close()


@case("35-before-connect", "publishes to another device's topic before CONNECT: it is closed, and nobody hears it",
      CLOSED, needs=(Feature.TOPIC_POLICY,))  # fmt: skip
async def _before_connect(scene: Scene) -> Seen:
    watcher = await scene.watcher()
    paper = await scene.device()
    # Who has had no CONNECT does not know the version, and may take an empty property list for part of the payload.
    said = Said(f"said by {paper.name} before CONNECT".encode(), _of_another(scene, paper.name))
    client = await scene.dialled(paper)
    try:
        started = time.monotonic()
        await client.send(Publish(said.topic, said.payload).encode(client.version))
        seen = (await client.end(scene.at_most(_ANSWER))).since(started)
    finally:
        client.close()
    if await watcher.got(said.payload, SOON) or scene.has_come(said):
        return Seen(Layer.MQTT, DELIVERED, "", ClosedBy.NOBODY, got_in=True).since(started)
    return replace(seen, withheld=said)


def _subscribes(
    name: str, description: str, topic_filter: str, *expected: str, version: ProtocolVersion | None = None,
    behind: bool = False,
) -> None:  # fmt: skip
    """Add a case that subscribes to *topic_filter*, *behind* one of its own in the same packet or alone."""

    async def attempt(scene: Scene) -> Seen:
        paper = await scene.device()
        connect = scene.connect(paper.name, version=version, keep_alive=600)
        client = await scene.admitted(paper, connect)
        try:
            victim = await scene.device()
            listens_to = topic_filter.format(
                victim=scene.topic(victim.name), commands=scene.topic(victim.name, "cmd/#"), group=scene.target.group
            )
            own = (scene.topic(paper.name, "cmd/#"),) if behind else ()
            started = time.monotonic()
            seen = (await scene.subscribe(client, *own, listens_to)).since(started)
            if seen.got_in:
                return await _overheard(scene, client, victim, listens_to)
            with contextlib.suppress(Impossible):  # Refused; without a watcher no more can be known.
                heard = await _overheard(scene, client, victim, listens_to)
                return heard if heard.got_in and heard.code == DELIVERED else seen
            return seen
        finally:
            client.close()

    chapter.add(name, description, expected, attempt, needs=(Feature.TOPIC_POLICY, Feature.SUBSCRIPTION_POLICY))


async def overhears(scene: Scene, paper: Paper, listens_to: str) -> Seen:
    """Connect with *paper*, subscribe to *listens_to*, and return whether another device is heard; else the answer."""
    started = time.monotonic()
    client = await scene.dial(scene.context(paper.pem))
    try:
        seen = await client.connect(scene.connect(paper.name, keep_alive=600))
        if seen.got_in and seen.code != OPEN:
            seen = await scene.subscribe(client, listens_to)
            if seen.got_in:
                # Not timed: it takes as long as other parties do to connect, and to speak.
                seen = await _overheard(scene, client, await scene.device(), listens_to)
                return seen if seen.code == DELIVERED else Seen(Layer.MQTT, NOT_DELIVERED, seen.text, ClosedBy.NOBODY)
        return seen.since(started)
    finally:
        client.close()


async def _overheard(scene: Scene, spy: RawClient, victim: Paper, listens_to: str) -> Seen:
    """Return whether *spy*, however its subscription was answered, receives what *victim* says, is told, or $SYS.

    When an authorised party has received both, the broker has routed them; what it sends of them to the spy arrives
    before the answer to a PINGREQ sent then, or soon after if different processes write data and PINGRESP. Both are
    retained, and the spy subscribes once more: a broker that withholds them live may hand them out later.
    """
    watcher = await scene.watcher()
    secrets = tuple(f"{what} {victim.name}".encode() for what in ("secret of", "command for"))
    service = await scene.target.registrar.certify(scene.target.service(scene.fresh("sender")))
    speakers = ((victim, scene.topic(victim.name)), (service, scene.topic(victim.name, "cmd/identify")))
    for (who, topic), secret in zip(speakers, secrets, strict=True):
        await _say(scene, who, topic, secret)
    try:
        for secret in secrets:
            if not await watcher.got(secret, scene.patience):
                raise Impossible(f"nobody hears {secret.decode()!r} here, not even who may")
        return await _heard_by(scene, spy, {topic for _, topic in speakers}, listens_to)
    finally:
        for who, topic in speakers:
            await _say(scene, who, topic, b"")  # Nothing is left behind.


async def _heard_by(scene: Scene, spy: RawClient, secrets: Container[str], listens_to: str) -> Seen:
    """Return whether *spy* receives anything at the topics of *secrets*, altered or not; else the answer."""
    again = Subscribe(_PACKET, (SubscriptionRequest(listens_to, QoS.AT_MOST_ONCE),))
    await spy.send(again.encode(spy.version) + Pingreq().encode(spy.version))
    answered = False
    while True:
        packet = await spy.receive(SOON if answered else scene.patience)
        if isinstance(packet, Publish) and (packet.topic in secrets or packet.topic.startswith("$SYS/")):
            return Seen(Layer.MQTT, DELIVERED, packet.topic, ClosedBy.NOBODY, got_in=True)
        if isinstance(packet, Seen):
            if answered and packet.code == OPEN:
                return Seen(Layer.MQTT, "SUBACK granted, not-delivered", "", ClosedBy.NOBODY)
            return packet
        answered = answered or isinstance(packet, Pingresp)


async def _say(scene: Scene, who: Paper, topic: str, payload: bytes) -> None:
    """Let *who* publish what the broker may retain, and wait until the broker has read it."""
    client = await scene.admitted(who)
    try:
        able = client.connack is None or client.connack.properties.retain_available is not False
        await client.send(Publish(topic, payload, retain=able).encode(client.version))
        await scene.served(client)
    finally:
        client.close()


_NO = "mqtt SUBACK 0x87"
_subscribes("36-everything", "subscribes to #", "#", _NO)
_subscribes("36-everything-311", "subscribes to # with MQTT 3.1.1", "#", "mqtt SUBACK 0x80", version=_V311)
_subscribes("36-other-device", "subscribes to another device's telemetry", "{victim}", _NO)
_subscribes("36-other-commands", "subscribes to another device's commands", "{commands}", _NO)
_subscribes("36-all-commands", "subscribes to all devices' commands", "fleet/+/+/cmd/#", _NO)
_subscribes("36-sys", "subscribes to $SYS/#", "$SYS/#", _NO)
_subscribes("36-shared", "subscribes to # by a shared subscription", "$share/g/#", _NO, "mqtt SUBACK 0x9e")
_subscribes(
    "36-shared-other",
    "subscribes to another device's telemetry by a shared subscription",
    "$share/g/{victim}",
    _NO,
    "mqtt SUBACK 0x9e",
)
_subscribes("36-queue", "subscribes to another device's telemetry behind $queue/, which for some brokers means a share",
            "$queue/{victim}", _NO)  # fmt: skip
_subscribes("36-exclusive", "subscribes to another device's telemetry behind $exclusive/", "$exclusive/{victim}", _NO)
_subscribes("36-own-group", "subscribes to everything of its own group", "fleet/{group}/#", _NO)
_subscribes("36-second-filter", "subscribes to its own commands and, in the same packet, to #", "#", _NO, behind=True)


def _leaves_will(
    name: str, description: str, *expected: str, version: ProtocolVersion | None = None, retain: bool = False
) -> None:
    async def attempt(scene: Scene) -> Seen:
        return await _will(scene, version, retain=retain)

    chapter.add(name, description, expected, attempt, needs=(Feature.TOPIC_POLICY,), limit=patience)


_leaves_will("37-will", "connects with a will for another device's topic", "mqtt CONNACK 0x87", NOWHERE)
_leaves_will(
    "37-will-311",
    "connects with a will for another device's topic (MQTT 3.1.1)",
    "mqtt CONNACK 5",
    NOWHERE,
    version=_V311,
)


_leaves_will("37-will-retained", "connects with a retained will for another device's topic",
             "mqtt CONNACK 0x87", NOWHERE, retain=True)  # fmt: skip


async def _will(scene: Scene, version: ProtocolVersion | None, *, retain: bool) -> Seen:
    await scene.watcher()
    paper = await scene.device()
    name = paper.name
    said = Said(f"will of {name}".encode(), scene.topic(scene.fresh("victim")))
    before = await scene.retained(said.topic) if retain else b""
    client = await scene.dialled(paper)
    will = Will(said.topic, said.payload, retain=retain)
    seen = await client.connect(scene.connect(name, version=version, keep_alive=60, will=will), scene.at_most(_ANSWER))
    client.abort()
    if seen.code == OPEN:
        raise Starved(f"its CONNECT was not answered, so there may be no will to send: {seen.reason}")
    # When this name is admitted again, the old connection has ended and its will is sent (MQTT 5 §3.1.2.5, §3.1.4).
    again = await scene.admitted(paper)
    try:
        fate = await scene.fate(again, name, said)
        fate = await _or_kept(scene, fate, said, before) if retain else fate
        return fate if seen.got_in or fate.got_in else replace(seen, withheld=said)
    finally:
        again.close()
