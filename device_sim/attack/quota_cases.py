"""Cases 5 and 6 of `fleet-sim delivery`: a device states how much it can take at once, and gets no more than that.

MQTT 5 §3.1.2.11.3 (Receive Maximum), §3.1.2.11.4 (Maximum Packet Size), §4.9. Everything else arrives in time.
"""

from __future__ import annotations

from broker.mqtt.codes import QoS
from broker.mqtt.packets import Puback, Pubcomp, Pubrec
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import EVERYTHING, NOTHING, GoodClient, Parties
from device_sim.attack.owed import exactly, owed
from device_sim.attack.target import BrokenPromise

_MOST = 3
_SENT = 12
_PACKET_SIZE = 256
_V5 = (Feature.MQTT5,)

chapter = Chapter()


async def _next(device: GoodClient) -> None:
    """Return when more has reached *device*, which has made room; raise `BrokenPromise` if that was too much."""
    already = len(device.came)
    await device.until_came(already + 1, "no more came to a client that had acknowledged")
    await device.pinged()
    _no_more(device)


async def _fed(parties: Parties, device: GoodClient, qos: QoS) -> list[bytes]:
    """Send more commands of *qos* to *device* than it takes at once; return their payloads."""
    sender = await parties.service("sender")
    payloads = [f"{number:02d}".encode() for number in range(_SENT)]
    for payload in payloads:
        await sender.publish(parties.topic(device, "cmd/step"), payload, qos)
    return payloads


def _no_more(device: GoodClient) -> None:
    if device.unfinished > _MOST:
        raise BrokenPromise(
            f"{device.unfinished} messages were under way at once to a client that had said Receive Maximum {_MOST}"
        )


@owed(
    chapter,
    "5-receive-maximum-qos1",
    "has a Receive Maximum of three: three QoS 1 messages come, and more as it acknowledges",
    "MQTT-3.3.4-9",
    needs=_V5,
)
async def _qos1(parties: Parties) -> None:
    device = await parties.device(receive_maximum=_MOST, answers=NOTHING)
    await device.subscribe(parties.topic(device, "cmd/#"), QoS.AT_LEAST_ONCE)
    payloads = await _fed(parties, device, QoS.AT_LEAST_ONCE)
    await device.settled()
    _no_more(device)
    await device.until_came(1, "nothing came to a client that can take three messages at once")
    freed = 0
    while len(device.came) < _SENT:  # One by one: freeing one place yields one more.
        await device.answer(Puback(device.came[freed].packet_id or 0))
        freed += 1
        await _next(device)
    await exactly(device, payloads, "its messages")


@owed(
    chapter,
    "5-receive-maximum-qos2",
    "has a Receive Maximum of three: each QoS 2 message counts until its PUBCOMP",
    "MQTT-3.3.4-9, §4.9",
    needs=(*_V5, Feature.QOS2),
)
async def _qos2(parties: Parties) -> None:
    device = await parties.device(receive_maximum=_MOST, answers=frozenset({Pubrec}))
    await device.subscribe(parties.topic(device, "cmd/#"), QoS.EXACTLY_ONCE)
    payloads = await _fed(parties, device, QoS.EXACTLY_ONCE)
    await device.settled()
    _no_more(device)
    await device.until(lambda: bool(device.released), "no PUBREL came for what was received")
    while len(device.came) < _SENT:
        await _completed(device)
        await _next(device)
    device.answers = EVERYTHING
    await _completed(device)
    await exactly(device, payloads, "its messages")


async def _completed(device: GoodClient) -> None:
    """Answer each PUBREL that has arrived and was not yet answered."""
    due, device.released = device.released, []
    for packet_id in due:
        await device.answer(Pubcomp(packet_id))


@owed(
    chapter,
    "5-receive-maximum-returns",
    "reconnects to queued messages with a Receive Maximum of three: no more come at once",
    "MQTT-3.3.4-9",
    needs=_V5,
)
async def _returns(parties: Parties) -> None:
    away = await parties.device(keeps=True)
    await away.subscribe(parties.topic(away, "cmd/#"), QoS.AT_LEAST_ONCE)
    await away.say_goodbye()
    payloads = await _fed(parties, away, QoS.AT_LEAST_ONCE)
    device = await parties.returned(away, receive_maximum=_MOST, answers=NOTHING)
    await device.settled()
    _no_more(device)
    freed = 0
    while len(device.came) < _SENT:
        for packet in device.came[freed:]:
            await device.answer(Puback(packet.packet_id or 0))
            freed += 1
        await _next(device)
    await exactly(device, payloads, "what was queued for it")


@owed(
    chapter,
    "6-packet-size",
    "has a Maximum Packet Size of 256 bytes: a larger message does not come, the next one does",
    "MQTT-3.1.2-24, MQTT-3.1.2-25",
    needs=_V5,
)
async def _packet_size(parties: Parties) -> None:
    device = await parties.device(maximum_packet_size=_PACKET_SIZE)
    await device.subscribe(parties.topic(device, "cmd/#"), QoS.AT_LEAST_ONCE)
    sender = await parties.service("sender")
    await sender.publish(parties.topic(device, "cmd/step"), bytes(2 * _PACKET_SIZE))
    await sender.publish(parties.topic(device, "cmd/step"), b"small")
    await exactly(device, [b"small"], "what fits")


@owed(
    chapter,
    "6-packet-size-queued",
    "has a Maximum Packet Size of 256 bytes and a Receive Maximum of one, and reconnects to queued "
    "messages: those that fit come",
    "MQTT-3.1.2-24, MQTT-3.1.2-25",
    needs=_V5,
)
async def _packet_size_queued(parties: Parties) -> None:
    away = await parties.device(keeps=True)
    await away.subscribe(parties.topic(away, "cmd/#"), parties.best_qos)
    await away.say_goodbye()
    sender = await parties.service("sender")
    for payload in (b"first", bytes(2 * _PACKET_SIZE), bytes(3 * _PACKET_SIZE), b"second", b"third"):
        await sender.publish(parties.topic(away, "cmd/step"), payload, parties.best_qos)
    device = await parties.returned(away, maximum_packet_size=_PACKET_SIZE, receive_maximum=1)
    await exactly(device, [b"first", b"second", b"third"], "what fits of what was queued")


@owed(
    chapter,
    "6-packet-size-retained",
    "has a Maximum Packet Size of 256 bytes, and subscribes to a larger retained message: "
    "it does not come, the next message does",
    "MQTT-3.1.2-24, MQTT-3.1.2-25",
    needs=_V5,
)
async def _packet_size_retained(parties: Parties) -> None:
    device = await parties.device()
    topic = parties.topic(device, "state")
    await device.publish(topic, bytes(2 * _PACKET_SIZE), retain=True)
    parties.retained(device, topic)
    listener = await parties.service(maximum_packet_size=_PACKET_SIZE, receive_maximum=1)
    await listener.subscribe(topic, QoS.AT_LEAST_ONCE)
    await device.publish(topic, b"small")
    await exactly(listener, [b"small"], "what fits")
