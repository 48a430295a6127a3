"""Cases 7 and 8 of `fleet-sim delivery`: a connection breaks in the middle of an exchange, and the session resumes.

MQTT 5 §4.3, §4.4, §4.6; 3.1.1 alike. What a device resends, as it must, is delivered once; what the broker must resend
has the same packet identifier and continues the exchange where it stood. QoS 2 messages are not duplicated, and neither
QoS 1 nor QoS 2 messages are lost.
"""

from __future__ import annotations

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import EVERYTHING, NOTHING, GoodClient, Parties
from device_sim.attack.owed import exactly, owed
from device_sim.attack.target import BrokenPromise

_ID = 7
_QUEUED = 5
_QOS2 = (Feature.QOS2,)

chapter = Chapter()


# 7: messages that a device publishes


async def _publisher(parties: Parties) -> tuple[GoodClient, GoodClient, Publish]:
    """Return a listener, a device with a kept session, and a QoS 2 message that it will publish."""
    device = await parties.device(keeps=True)
    listener = await parties.service()
    topic = parties.topic(device, "telemetry")
    await listener.subscribe(topic, QoS.EXACTLY_ONCE)
    return listener, device, Publish(topic, b"once", QoS.EXACTLY_ONCE, packet_id=_ID)


async def _received(device: GoodClient, message: Publish) -> None:
    """Publish *message* and wait for its PUBREC."""
    await device.send(message)
    answer = await device.answered(Pubrec, _ID)
    if answer.reason_code.is_failure:
        raise BrokenPromise(f"PUBREC 0x{answer.reason_code:02x} was the answer to its message")


async def _completed(device: GoodClient, *codes: ReasonCode) -> None:
    """Send PUBREL and wait for PUBCOMP, with one of *codes*."""
    await device.send(Pubrel(_ID))
    answer = await device.answered(Pubcomp, _ID)
    if answer.reason_code not in codes:
        raise BrokenPromise(f"PUBCOMP 0x{answer.reason_code:02x} was the answer to PUBREL")


@owed(
    chapter,
    "7-publish-again",
    "loses its connection after PUBREC, reconnects and sends its QoS 2 message again: it is delivered once",
    "MQTT-4.3.3-10",
    older="MQTT-4.3.3-2",
    needs=_QOS2,
)
async def _publish_again(parties: Parties) -> None:
    listener, device, message = await _publisher(parties)
    await _received(device, message)
    device.cut()
    device = await parties.returned(device)
    await _received(device, _again(message))
    await _completed(device, ReasonCode.SUCCESS)
    await exactly(listener, [b"once"], "its message")


@owed(
    chapter,
    "7-publish-unanswered",
    "loses its connection before PUBREC, reconnects and sends its QoS 2 message again: it is delivered once",
    "MQTT-4.3.3-10",
    older="MQTT-4.3.3-2",
    needs=_QOS2,
)
async def _publish_unanswered(parties: Parties) -> None:
    listener, device, message = await _publisher(parties)
    await device.send(message)
    device.raw.close()
    device = await parties.returned(device)
    await _received(device, _again(message))
    await _completed(device, ReasonCode.SUCCESS)
    await exactly(listener, [b"once"], "its message")


@owed(
    chapter,
    "7-release-again",
    "loses its connection after PUBREL, reconnects and sends PUBREL again: "
    "PUBCOMP comes, and the message is delivered once",
    "MQTT-4.3.3-11",
    older="MQTT-4.3.3-2",
    needs=_QOS2,
)
async def _release_again(parties: Parties) -> None:
    listener, device, message = await _publisher(parties)
    await _received(device, message)
    await device.send(Pubrel(_ID))
    device.raw.close()
    device = await parties.returned(device)
    # If the first PUBREL had arrived, the exchange was over: then 0x92 is right (MQTT 5 §3.7.2.1).
    await _completed(device, ReasonCode.SUCCESS, ReasonCode.PACKET_IDENTIFIER_NOT_FOUND)
    await exactly(listener, [b"once"], "its message")


@owed(chapter, "7-identifier-again", "uses a packet identifier again when its exchange is over: both messages are "
      "delivered", "MQTT-4.3.3-12", older="MQTT-4.3.3-2", needs=_QOS2)  # fmt: skip
async def _identifier_again(parties: Parties) -> None:
    listener, device, message = await _publisher(parties)
    for payload in (b"once", b"twice"):
        await _received(device, Publish(message.topic, payload, message.qos, packet_id=_ID))
        await _completed(device, ReasonCode.SUCCESS)
        device.raw.close()
        device = await parties.returned(device)
    await exactly(listener, [b"once", b"twice"], "its messages")


def _again(message: Publish) -> Publish:
    return Publish(message.topic, message.payload, message.qos, dup=True, packet_id=message.packet_id)


# 8: messages that a device receives


async def _commanded(parties: Parties, qos: QoS, answers: frozenset[type]) -> tuple[GoodClient, Publish]:
    """Return a device that has received a command of *qos* and sends only *answers*, and that command."""
    device = await parties.device(keeps=True, answers=answers)
    await device.subscribe(parties.topic(device, "cmd/#"), qos)
    sender = await parties.service("sender")
    await sender.publish(parties.topic(device, "cmd/open"), b"open", qos)
    await device.until_came(1, "its command never came")
    return device, device.came[0]


async def _sent_again(parties: Parties, qos: QoS) -> None:
    device, first = await _commanded(parties, qos, NOTHING)
    device.cut()
    device = await parties.returned(device)
    await exactly(device, [b"open"], "what was not acknowledged")
    again = device.came[0]
    if again.packet_id != first.packet_id or not again.dup:
        raise BrokenPromise(
            f"sent again under packet identifier {again.packet_id} with DUP {int(again.dup)}; the first time it was "
            f"{first.packet_id}, and DUP has to be 1"
        )
    await _nothing_left(parties, device)


async def _nothing_left(parties: Parties, device: GoodClient) -> None:
    """Let *device* reconnect once more; raise `BrokenPromise` if something arrives that it already had."""
    device.raw.close()
    device = await parties.returned(device)
    await device.settled()
    if device.came or device.released:
        raise BrokenPromise("what was acknowledged to the end came once more after the next connection")


@owed(
    chapter,
    "8-qos1-again",
    "loses its connection before its PUBACK, and reconnects: the message comes again, with DUP",
    "MQTT-4.4.0-1, MQTT-3.3.1-1",
    older="MQTT-4.4.0-1, MQTT-3.3.1-1",
)
async def _qos1_again(parties: Parties) -> None:
    await _sent_again(parties, QoS.AT_LEAST_ONCE)


@owed(
    chapter,
    "8-qos2-again",
    "loses its connection before its PUBREC, and reconnects: the message comes again, with DUP",
    "MQTT-4.4.0-1, MQTT-3.3.1-1",
    older="MQTT-4.4.0-1, MQTT-3.3.1-1",
    needs=_QOS2,
)
async def _qos2_again(parties: Parties) -> None:
    await _sent_again(parties, QoS.EXACTLY_ONCE)


@owed(
    chapter,
    "8-qos2-release-again",
    "loses its connection before its PUBCOMP, and reconnects: PUBREL comes again, the message does not",
    "MQTT-4.4.0-1, MQTT-4.3.3-6",
    older="MQTT-4.4.0-1",
    needs=_QOS2,
)
async def _qos2_release_again(parties: Parties) -> None:
    device, first = await _commanded(parties, QoS.EXACTLY_ONCE, frozenset({Pubrec}))
    await device.until(lambda: bool(device.released), "no PUBREL came for what was received")
    device.cut()
    device = await parties.returned(device, answers=NOTHING)
    await device.until(lambda: bool(device.released or device.came), "no PUBREL came again")
    await device.settled()
    if device.came:
        raise BrokenPromise("the message came once more, though PUBREC had been received: QoS 2 is exactly once")
    if device.released != [first.packet_id]:
        raise BrokenPromise(f"PUBREL came again for {device.released}, and for {first.packet_id} it was due")
    await device.answer(Pubcomp(device.released[0]))
    await _nothing_left(parties, device)


@owed(
    chapter,
    "8-queued",
    "reconnects to queued messages: all come, once, in order, and not again later",
    "MQTT-4.5.0-1, MQTT-4.6.0-5",
    older="MQTT-3.1.2-5, MQTT-4.6.0-6",
)
async def _queued(parties: Parties) -> None:
    qos = parties.best_qos
    device = await parties.device(keeps=True)
    await device.subscribe(parties.topic(device, "cmd/#"), qos)
    device.cut()
    sender = await parties.service("sender")
    payloads = [f"{number}".encode() for number in range(_QUEUED)]
    for payload in payloads:
        await sender.publish(parties.topic(device, "cmd/step"), payload, qos)
    device = await parties.returned(device)
    await exactly(device, payloads, "what was queued for it")
    await _nothing_left(parties, device)


@owed(
    chapter,
    "8-in-order",
    "loses its connection with three unacknowledged messages, and reconnects: they come in order",
    "MQTT-4.6.0-1",
    older="MQTT-4.6.0-1",
)
async def _in_order(parties: Parties) -> None:
    device = await parties.device(keeps=True, answers=NOTHING)
    await device.subscribe(parties.topic(device, "cmd/#"), QoS.AT_LEAST_ONCE)
    sender = await parties.service("sender")
    payloads = [b"1", b"2", b"3"]
    for payload in payloads:
        await sender.publish(parties.topic(device, "cmd/step"), payload)
    await device.until_came(len(payloads), "three messages did not come at once")
    await device.answer(Puback(device.came[1].packet_id or 0))
    await device.settled()
    device.cut()
    device = await parties.returned(device, answers=EVERYTHING)
    await exactly(device, [b"1", b"3"], "what was not acknowledged")


@owed(
    chapter,
    "8-clean-start",
    "reconnects with a clean start: its old session is gone, with its messages",
    "MQTT-3.1.2-4",
    older="MQTT-3.1.2-6",
)
async def _clean_start(parties: Parties) -> None:
    device, _ = await _commanded(parties, QoS.AT_LEAST_ONCE, NOTHING)
    device.cut()
    device = await parties.device(device.paper)
    await device.settled()
    if device.session_present or device.came:
        raise BrokenPromise("it asked for a clean start, and got its old session")
