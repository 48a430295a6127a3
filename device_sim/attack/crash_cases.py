"""Case 22 of `fleet-sim delivery`: the broker is killed (SIGKILL) and started again. What it has acknowledged is kept.

MQTT 5 §4.1: the server keeps the state of a session until the session expires. Only a broker that we have started can
be killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from broker.mqtt.codes import QoS
from broker.mqtt.connect import Will
from broker.mqtt.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel
from broker.mqtt.properties import Properties
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import Parties
from device_sim.attack.owed import exactly, owed
from device_sim.attack.scene import Scene
from device_sim.attack.target import BrokenPromise, Impossible

_ONCE = QoS.AT_LEAST_ONCE
_STARTED = 60.0
_LIFE = 600
_IDENTIFIER = 22
_MANY = 32
_LARGE = bytes(range(250)) * 400
_SESSION = "MQTT-4.1.0-1, §4.1"

chapter = Chapter()


async def _kill(parties: Parties) -> None:
    """Kill the broker, start it again, and return when it admits devices."""
    scene = parties.scene
    kill, start = _means(scene)
    await kill()  # At once: what was acknowledged last must be on disk already.
    await scene.close()
    await start()
    await scene.until_admitted(await scene.device(), _STARTED)


def _means(scene: Scene) -> tuple[Callable[[], Awaitable[None]], Callable[[], Awaitable[None]]]:
    """Return how the broker is killed, and how it is started again; raise `Impossible` if it cannot be."""
    kill, start = scene.target.kill_broker, scene.target.start_broker
    if kill is None or start is None:
        raise Impossible("the tester cannot kill this broker")
    return kill, start


@owed(
    chapter,
    "22-killed-queued",
    "is away when the broker is killed: its queued messages and its subscription are kept, with all their options",
    f"{_SESSION}, MQTT-3.3.2-5, MQTT-3.3.4-3",
    last=True,
)
async def _queued(parties: Parties) -> None:
    _means(parties.scene)  # Before anything else is done.
    device, sender = await parties.device(keeps=True), await parties.service("sender")
    await device.subscribe(parties.topic(device, "cmd/#"), _ONCE, identifier=_IDENTIFIER, as_published=True)
    device.cut()
    topic, told = parties.topic(device, "cmd/step"), [*(f"step {number}".encode() for number in range(3)), _LARGE]
    for payload in told:
        await sender.publish(topic, payload, properties=Properties(message_expiry_interval=_LIFE))
    await _kill(parties)
    again = await parties.returned(device)
    await exactly(again, told, "what was queued when the broker was killed")
    for came in again.came:
        _has_identifier(came)
        _expires(came, "queued")
    sender = await parties.connected(sender.paper)
    await sender.publish(topic, b"afterwards", retain=True)
    parties.retained(sender, topic)
    await again.until_payloads([b"afterwards"], "its subscription was lost when the broker was killed")
    _has_identifier(again.came[-1])
    if not again.came[-1].retain:
        raise BrokenPromise("Retain As Published was forgotten when the broker was killed")


def _expires(came: Publish, kept: str) -> None:
    left = came.properties.message_expiry_interval
    if left is None or not 0 < left <= _LIFE:
        raise BrokenPromise(f"what was {kept} came with an expiry interval of {left}, and had {_LIFE}")


def _has_identifier(came: Publish) -> None:
    if came.properties.subscription_identifiers != (_IDENTIFIER,):
        raise BrokenPromise("the subscription identifier was forgotten when the broker was killed")


@owed(
    chapter,
    "22-killed-at-puback",
    f"is away while {_MANY} messages of 100 kB are published at once, and the broker is killed at the first PUBACK: "
    "what was acknowledged is kept",
    "MQTT-4.3.2-4, MQTT-4.1.0-1, §4.1",
    last=True,
)
async def _at_puback(parties: Parties) -> None:
    _means(parties.scene)  # Before anything else is done.
    device, sender = await parties.device(keeps=True), await parties.service("sender")
    await device.subscribe(parties.topic(device, "cmd/#"), _ONCE)
    device.cut()
    topic = parties.topic(device, "cmd/step")
    told = {number: f"{number} ".encode() + _LARGE for number in range(1, _MANY + 1)}
    packets = b"".join(
        Publish(topic, payload, _ONCE, packet_id=number).encode(parties.version) for number, payload in told.items()
    )
    sending = asyncio.create_task(sender.raw.send(packets, _STARTED))
    try:
        first = await sender.answered(Puback)
        await _kill(parties)
    finally:
        sending.cancel()
        await asyncio.wait([sending])
    acknowledged = {first.packet_id}
    while isinstance(packet := await sender.raw.receive(0.0), Puback):  # Those that had come with the first.
        acknowledged.add(packet.packet_id)
    again = await parties.returned(device)
    await again.until(
        lambda: {told[number] for number in acknowledged} <= set(again.payloads),
        f"what was acknowledged when the broker was killed ({len(acknowledged)} messages): not all came",
    )


@owed(
    chapter,
    "22-killed-retained",
    "retains messages and clears one before the broker is killed: a later subscriber gets the others",
    "MQTT-3.3.1-5, MQTT-3.3.1-6, §4.1",
    last=True,
)
async def _retained(parties: Parties) -> None:
    _means(parties.scene)  # Before anything else is done.
    device = await parties.device()
    topics = [parties.topic(device, f"state/{name}") for name in ("kept", "cleared")]
    for topic, payload in zip(topics, (b"kept", b"cleared"), strict=True):
        await device.publish(topic, payload, retain=True, properties=Properties(message_expiry_interval=_LIFE))
    await device.publish(topics[1], b"", retain=True)
    await _kill(parties)
    device = await parties.device(device.paper)
    for topic in topics:
        parties.retained(device, topic)
    listener = await parties.service()
    await listener.subscribe(parties.topic(device, "state/#"), _ONCE)
    await exactly(listener, [b"kept"], "what was retained when the broker was killed")
    _expires(listener.came[0], "retained")


@owed(chapter, "22-killed-qos2", "sends a QoS 2 message again after the broker was killed: it arrives once",
      "MQTT-4.3.3-10, §4.1", last=True)  # fmt: skip
async def _exactly_once(parties: Parties) -> None:
    _means(parties.scene)  # Before anything else is done.
    listener, device = await parties.service(keeps=True), await parties.device(keeps=True)
    await device.subscribe(parties.topic(device, "cmd/#"), _ONCE)
    topic, number = parties.topic(device, "telemetry"), device.new_id()
    if await listener.subscribe(topic, QoS.EXACTLY_ONCE) is not QoS.EXACTLY_ONCE:
        raise Impossible("the broker grants no QoS 2")
    packet = Publish(topic, b"once", QoS.EXACTLY_ONCE, packet_id=number)
    await device.send(packet)
    await device.answered(Pubrec, number)
    # Its own exchange with the listener is over, or the message would rightly come again.
    await listener.until(lambda: bool(listener.released), "a QoS 2 message never came, or was never released")
    await _kill(parties)
    again, listener = await parties.returned(device), await parties.returned(listener)
    await again.send(Publish(topic, b"once", QoS.EXACTLY_ONCE, dup=True, packet_id=number))
    await again.answered(Pubrec, number)
    await again.send(Pubrel(number))
    await again.answered(Pubcomp, number)
    await listener.settled()
    if listener.came:
        raise BrokenPromise("a QoS 2 message came twice: the broker forgot its packet identifier when it was killed")


@owed(chapter, "22-killed-will", "has a will when the broker is killed, and does not reconnect: the will is sent",
      "MQTT-3.1.2-8, §4.1", last=True)  # fmt: skip
async def _will(parties: Parties) -> None:
    _means(parties.scene)  # Before anything else is done.
    paper = await parties.scene.device()
    topic = parties.topic(paper, "state")
    listener = await parties.service(keeps=True)
    await listener.subscribe(topic, _ONCE)
    device = await parties.device(paper, will=Will(topic, b"gone", _ONCE), keeps=True)
    # Acknowledged once what came before is on disk. CONNACK promises no such thing.
    await device.publish(parties.topic(device, "telemetry"), b"here")
    await _kill(parties)
    again = await parties.returned(listener)
    await again.until_came(1, "its will was never sent")
    await exactly(again, [b"gone"], "its will")
