"""Case 20 of `fleet-sim delivery`: messages of one publisher arrive in order, per topic and QoS.

MQTT 5 §4.6; 3.1.1 §4.6. No order is promised between QoS levels, topics or publishers, and none is checked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from broker.mqtt.codes import QoS
from broker.mqtt.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import GoodClient, Parties
from device_sim.attack.owed import once_each, owed
from device_sim.attack.target import BrokenPromise

_ROUNDS = 6
_AT_ONCE = 9
"""How many messages are sent at once; two in three of them count against the broker's Receive Maximum."""
_MANY = 300
_CLAUSE = "MQTT-4.6.0-5, MQTT-4.6.0-6"
_OLDER = "MQTT-4.6.0-6"

chapter = Chapter()


async def _publish_at_once(client: GoodClient, topic: str, messages: Sequence[tuple[bytes, QoS]]) -> None:
    """Publish all *messages* before any is acknowledged, and return when all are."""
    sent = [Publish(topic, payload, qos, packet_id=client.new_id() if qos else None) for payload, qos in messages]
    for each in sent:
        await client.send(each)
    due = {each.packet_id for each in sent if each.qos}
    while due:
        packet = await client.take(client.patience)
        if packet is None:
            raise BrokenPromise("its messages were not acknowledged", never=True)
        if isinstance(packet, Pubrec):
            await client.send(Pubrel(packet.packet_id))
        elif isinstance(packet, (Puback, Pubcomp)):
            due.discard(packet.packet_id)


def _in_order(came: Sequence[Publish], sent: Sequence[tuple[bytes, QoS]], granted: QoS) -> None:
    """Raise `BrokenPromise` if *came* is not what was *sent*, in order per QoS; at QoS 0 one may be missing."""
    for qos in QoS:
        due = [payload for payload, at in sent if min(at, granted) is qos]
        got = [each.payload for each in came if each.qos is qos]
        if got != [payload for payload in due if payload in got]:
            raise BrokenPromise(f"messages of QoS {qos.value} came in another order, or more than once")
        if qos:
            once_each(got, due, f"messages of QoS {qos.value}")


@owed(chapter, "20-order", "publishes at QoS 0, 1 and 2 in turn, several at once: at each QoS they arrive in order",
      _CLAUSE, older=_OLDER)  # fmt: skip
async def _mixed(parties: Parties) -> None:
    device, listener = await parties.device(), await parties.service()
    topic = parties.topic(device, "telemetry")
    granted = await listener.subscribe(topic, parties.best_qos)
    levels = [qos for qos in QoS if qos <= parties.best_qos]
    sent = [(f"{number:03d}".encode(), levels[number % len(levels)]) for number in range(_ROUNDS * _AT_ONCE)]
    for start in range(0, len(sent), _AT_ONCE):
        await _publish_at_once(device, topic, sent[start : start + _AT_ONCE])
    reliable = {payload for payload, qos in sent if qos}
    await listener.until_payloads(reliable, "what was published: not all came")
    await listener.settled()
    _in_order(listener.came, sent, granted)


@owed(chapter, "20-order-two", "gets commands from two publishers at once: the commands of each come in order", _CLAUSE,
      older=_OLDER)  # fmt: skip
async def _two(parties: Parties) -> None:
    device = await parties.device()
    topic = parties.topic(device, "cmd/step")
    granted = await device.subscribe(topic, parties.best_qos)
    senders = [await parties.service("sender") for _ in range(2)]
    plans = [[(f"{name} {number:02d}".encode(), granted) for number in range(_ROUNDS * _AT_ONCE // 2)] for name in "ab"]

    async def command(sender: GoodClient, plan: Sequence[tuple[bytes, QoS]]) -> None:
        for start in range(0, len(plan), _AT_ONCE):
            await _publish_at_once(sender, topic, plan[start : start + _AT_ONCE])

    commanding = asyncio.create_task(command(senders[0], plans[0]))
    try:
        await command(senders[1], plans[1])
        await commanding
    finally:
        commanding.cancel()
    due = {payload for plan in plans for payload, _ in plan}
    await device.until_payloads(due, "its commands: not all came")
    await device.settled()
    for name, plan in zip("ab", plans, strict=True):
        _in_order([each for each in device.came if each.payload.startswith(name.encode())], plan, granted)


@owed(
    chapter,
    "20-order-returns",
    "reconnects while commands are published: queued and new ones come in order",
    _CLAUSE,
    older=_OLDER,
)
async def _returns(parties: Parties) -> None:
    device, sender = await parties.device(keeps=True), await parties.service("sender")
    topic = parties.topic(device, "cmd/step")
    granted = await device.subscribe(topic, parties.best_qos)
    await device.say_goodbye()
    sent = [(f"{number:03d}".encode(), granted) for number in range(_ROUNDS * _AT_ONCE)]
    half = len(sent) // 2
    for payload, qos in sent[:half]:
        await sender.publish(topic, payload, qos)

    async def command() -> None:
        for payload, qos in sent[half:]:
            await sender.publish(topic, payload, qos)

    commanding = asyncio.create_task(command())
    try:
        device = await parties.returned(device)
        due = {payload for payload, _ in sent}
        await device.until_payloads(due, "its commands: not all came")
        await commanding
    finally:
        commanding.cancel()
    await device.settled()
    _in_order(device.came, sent, granted)


@owed(chapter, "20-many-queued", "is away while 300 messages are published to it: all come, in order", _CLAUSE,
      older=_OLDER)  # fmt: skip
async def _many(parties: Parties) -> None:
    device, sender = await parties.device(keeps=True), await parties.service("sender")
    topic = parties.topic(device, "cmd/step")
    granted = await device.subscribe(topic, QoS.AT_LEAST_ONCE)
    await device.say_goodbye()
    sent = [(f"{number:03d}".encode(), granted) for number in range(_MANY)]
    for start in range(0, len(sent), _AT_ONCE):
        await _publish_at_once(sender, topic, sent[start : start + _AT_ONCE])
    device = await parties.returned(device)
    due = {payload for payload, _ in sent}
    await device.until_payloads(due, f"of {_MANY} queued messages not all came")
    await device.settled()
    _in_order(device.came, sent, granted)
