"""Case 22 of `fleet-sim delivery`: the broker is killed (SIGKILL) and started again. What it has acknowledged is kept.

MQTT 5 §4.1: the server keeps the state of a session until the session expires. Only a broker that we have started can
be killed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from broker.mqtt.codes import QoS
from broker.mqtt.connect import Will
from broker.mqtt.packets import Pubcomp, Publish, Pubrec, Pubrel
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import Parties
from device_sim.attack.owed import exactly, owed
from device_sim.attack.scene import Scene
from device_sim.attack.target import BrokenPromise, Impossible

_ONCE = QoS.AT_LEAST_ONCE
_STARTED = 60.0
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
    "is away when the broker is killed: its queued messages and its subscription are kept",
    _SESSION,
    last=True,
)
async def _queued(parties: Parties) -> None:
    _means(parties.scene)  # Before anything else is done.
    device, sender = await parties.device(keeps=True), await parties.service("sender")
    await device.subscribe(parties.topic(device, "cmd/#"), _ONCE)
    device.cut()
    topic, told = parties.topic(device, "cmd/step"), [f"step {number}".encode() for number in range(3)]
    for payload in told:
        await sender.publish(topic, payload)
    await _kill(parties)
    again = await parties.returned(device)
    await exactly(again, told, "what was queued when the broker was killed")
    await (await parties.connected(sender.paper)).publish(topic, b"afterwards")
    await again.until(lambda: b"afterwards" in again.payloads, "its subscription was lost when the broker was killed")


@owed(chapter, "22-killed-retained", "retains a message before the broker is killed: a later subscriber gets it",
      "MQTT-3.3.1-5, §4.1", last=True)  # fmt: skip
async def _retained(parties: Parties) -> None:
    _means(parties.scene)  # Before anything else is done.
    device = await parties.device()
    topic = parties.topic(device, "state")
    await device.publish(topic, b"kept", retain=True)
    await _kill(parties)
    parties.retained(await parties.device(device.paper), topic)
    listener = await parties.service()
    await listener.subscribe(topic, _ONCE)
    await exactly(listener, [b"kept"], "what was retained when the broker was killed")


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
    await again.until(lambda: bool(again.came), "its will was never sent")
    await exactly(again, [b"gone"], "its will")
