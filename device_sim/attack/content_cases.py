"""Case 16 of `fleet-sim delivery`: messages arrive unaltered, and both request flags of CONNECT are respected.

MQTT 5 §3.3.2.3, §3.1.2.11.6 (Request Response Information), §3.1.2.11.7 (Request Problem Information).
"""

from __future__ import annotations

from typing import Any

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.packets import Packet, Puback, Publish, Suback, Subscribe, SubscriptionRequest, Unsuback, Unsubscribe
from broker.mqtt.properties import NO_PROPERTIES, Properties
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import GoodClient, Parties
from device_sim.attack.owed import as_told, exactly, owed
from device_sim.attack.target import BrokenPromise

_V5 = (Feature.MQTT5,)
_ONCE = QoS.AT_LEAST_ONCE
_LIFE = 90
_LARGE = (100_000, 900_000)
_AROUND = 500
"""Bytes of a PUBLISH besides its payload, at most."""
_UNALTERED = ", ".join(f"MQTT-3.3.2-{number}" for number in (4, 15, 16, 17, 18, 20))

chapter = Chapter()


def _told(parties: Parties, device: GoodClient) -> Properties:
    # The user properties are sorted neither by name nor by value, and one occurs twice.
    pairs = (("z", "1"), ("a", "3"), ("z", "1"), ("a", "2"), ("größe", "ü €"))
    return Properties(
        payload_format_indicator=1,
        message_expiry_interval=_LIFE,
        content_type="application/json; charset=utf-8",
        response_topic=parties.topic(device, "telemetry"),
        correlation_data=bytes(range(256)),
        user_properties=pairs,
    )


@owed(
    chapter,
    "16-properties",
    "gets a message with all properties, at each QoS: all are unaltered, user properties in order",
    _UNALTERED,
    needs=_V5,
)
async def _live(parties: Parties) -> None:
    device, sender = await parties.device(), await parties.service("sender")
    topic, told = parties.topic(device, "cmd/step"), _told(parties, device)
    granted = await device.subscribe(topic, parties.best_qos)
    for qos in (each for each in QoS if each <= granted):
        await sender.publish(topic, f"at {qos.value}".encode(), qos, properties=told)
        await device.until_came(qos.value + 1, "its command never came")
        as_told(device.came[-1], Publish(topic, f"at {qos.value}".encode(), qos, properties=told))


@owed(
    chapter,
    "16-properties-queued",
    "reconnects to a queued message with all properties: all are unaltered",
    _UNALTERED,
    needs=_V5,
)
async def _queued(parties: Parties) -> None:
    device, sender = await parties.device(keeps=True), await parties.service("sender")
    topic, told = parties.topic(device, "cmd/step"), _told(parties, device)
    granted = await device.subscribe(topic, parties.best_qos)
    await device.say_goodbye()
    await sender.publish(topic, b"queued", granted, properties=told)
    device = await parties.returned(device)
    await exactly(device, [b"queued"], "what was queued for it")
    as_told(device.came[0], Publish(topic, b"queued", granted, properties=told))


@owed(
    chapter,
    "16-properties-retained",
    "retains a message with all properties: a later subscriber gets all unaltered",
    _UNALTERED,
    needs=_V5,
)
async def _retained(parties: Parties) -> None:
    device, listener = await parties.device(), await parties.service()
    topic, told = parties.topic(device, "state"), _told(parties, device)
    await device.publish(topic, b"stored", retain=True, properties=told)
    parties.retained(device, topic)
    granted = await listener.subscribe(topic, _ONCE)
    await exactly(listener, [b"stored"], "what is retained")
    as_told(listener.came[0], Publish(topic, b"stored", granted, retain=True, properties=told))


@owed(
    chapter,
    "16-properties-empty",
    "gets a message with an empty content type, correlation data and user property: they come, empty",
    "MQTT-3.3.2-16, MQTT-3.3.2-17, MQTT-3.3.2-20",
    needs=_V5,
)
async def _empty(parties: Parties) -> None:
    device, sender = await parties.device(), await parties.service("sender")
    topic = parties.topic(device, "cmd/step")
    told = Properties(content_type="", correlation_data=b"", user_properties=(("", ""), ("a", "")))
    await device.subscribe(topic, _ONCE)
    await sender.publish(topic, b"step", properties=told)
    await exactly(device, [b"step"], "its command")
    as_told(device.came[0], Publish(topic, b"step", _ONCE, properties=told))


@owed(
    chapter,
    "16-payload",
    "gets payloads at once, queued and retained: empty, with every byte value, of up to 900 kB: each is unaltered",
    "§3.3.3",
    older="§3.3.3",
)
async def _payload(parties: Parties) -> None:
    device, sender = await parties.device(keeps=True), await parties.service("sender")
    topic = parties.topic(device, "cmd/step")
    await device.subscribe(topic, _ONCE)
    payloads = [b"", bytes(range(256)), *(_large(sender, size) for size in _LARGE)]
    for payload in payloads:
        await sender.publish(topic, payload)
    await exactly(device, payloads, "what was sent")
    await device.say_goodbye()
    for payload in payloads:
        await sender.publish(topic, payload)
    device = await parties.returned(device)
    await exactly(device, payloads, "what was queued")
    state = parties.topic(device, "state")
    await device.publish(state, payloads[-1], retain=True)
    parties.retained(device, state)
    listener = await parties.service()
    await listener.subscribe(state, _ONCE)
    await exactly(listener, payloads[-1:], "what is retained")


def _large(sender: GoodClient, size: int) -> bytes:
    """Return *size* bytes, or as many as the broker takes."""
    connack = sender.raw.connack
    most = connack.properties.maximum_packet_size if connack is not None else None
    return (bytes(range(251)) * (size // 251 + 1))[: size if most is None else min(size, most - _AROUND)]


@owed(
    chapter,
    "16-to-older",
    "exchanges messages by MQTT 5 with a client that speaks 3.1.1: they arrive both ways, without properties",
    "MQTT-4.5.0-1, §3.3.4",
    needs=_V5,
)
async def _to_older(parties: Parties) -> None:
    device, older = await parties.device(), await parties.service("sender", version=ProtocolVersion.V311)
    topic, command = parties.topic(device, "telemetry"), parties.topic(device, "cmd/step")
    await older.subscribe(topic, _ONCE)
    await device.subscribe(command, _ONCE)
    await device.publish(topic, b"said", properties=_told(parties, device))
    await exactly(older, [b"said"], "what was said")
    await older.publish(command, b"step")
    await exactly(device, [b"step"], "its command")
    if device.came[0].properties != NO_PROPERTIES:
        raise BrokenPromise(f"what MQTT 3.1.1 cannot bear came: {device.came[0].properties}")


@owed(chapter, "16-no-response-information", "asks for no response information, or does not mention it: it gets none",
      "MQTT-3.1.2-28", needs=_V5)  # fmt: skip
async def _no_response_information(parties: Parties) -> None:
    asked: tuple[dict[str, Any], ...] = ({}, {"request_response_information": False})
    for asks in asked:
        device = await parties.device(**asks)
        if device.told.response_information is not None:
            raise BrokenPromise(f"response information came unasked: {device.told.response_information!r}")


@owed(chapter, "16-no-problem-information", "wants no problem information: SUBACK, UNSUBACK and PUBACK have no reason "
      "string and no user properties", "MQTT-3.1.2-29", needs=_V5)  # fmt: skip
async def _no_problem_information(parties: Parties) -> None:
    device = await parties.device(request_problem_information=False)
    commands, others = parties.topic(device, "cmd/#"), "fleet/others/nobody/cmd/#"
    answers: list[Packet] = []
    await device.send(Subscribe(packet_id := device.new_id(), (SubscriptionRequest(commands, _ONCE),)))
    answers.append(await device.answered(Suback, packet_id))
    for topic_filter in (commands, "fleet/never/subscribed"):
        await device.send(Unsubscribe(packet_id := device.new_id(), (topic_filter,)))
        answers.append(await device.answered(Unsuback, packet_id))
    said = Publish(parties.topic(device, "telemetry"), b"said", _ONCE, packet_id=device.new_id())
    await device.send(said)
    answers.append(await device.answered(Puback, said.packet_id))
    # The forbidden subscription comes last: a broker may close for it, and DISCONNECT may say why.
    await device.send(Subscribe(device.new_id(), (SubscriptionRequest(others, _ONCE),)))
    refusal = await device.raw.receive(device.patience)
    if isinstance(refusal, Suback):
        answers.append(refusal)
    for answer in answers:
        told: Properties = getattr(answer, "properties", NO_PROPERTIES)
        if told.reason_string is not None or told.user_properties:
            kind = answer.packet_type.name
            raise BrokenPromise(f"{kind} came with {told} to a client that wanted no problem information")
