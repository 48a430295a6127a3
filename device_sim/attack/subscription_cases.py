"""Case 15 of `fleet-sim delivery`: subscriptions that overlap, are replaced, ended, or downgraded; No Local.

MQTT 5 §3.3.4, §3.8, §3.10; 3.1.1 §3.3.5, §3.8, §3.10. If several subscriptions of one client match, a message comes
once, or once for each: both are right, if the highest QoS is among them.
"""

from __future__ import annotations

import asyncio

from broker.mqtt.codes import QoS, RetainHandling
from broker.mqtt.packets import Suback, Subscribe, SubscriptionRequest
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import EVERYTHING, NOTHING, GoodClient, Parties
from device_sim.attack.owed import exactly, owed, said_at
from device_sim.attack.target import BrokenPromise

_V5 = (Feature.MQTT5,)
_ONCE = QoS.AT_LEAST_ONCE
_MEANWHILE = 40
_LISTENERS = 40

chapter = Chapter()


async def _overlapping(parties: Parties, wide: QoS, exact: QoS) -> None:
    device, sender = await parties.device(), await parties.service("sender")
    topic = parties.topic(device, "cmd/step")
    await device.subscribe(parties.topic(device, "cmd/#"), wide)
    await device.subscribe(topic, exact)
    await sender.publish(topic, b"step", parties.best_qos)
    await device.until_came(1, "its command never came")
    await device.settled()
    came = sorted(each.qos for each in device.came)
    if len(came) > 2 or came[-1] is not max(wide, exact) or not set(came) <= {wide, exact}:  # noqa: PLR2004 - one for each
        told = " and ".join(str(each.value) for each in came)
        raise BrokenPromise(f"it came at QoS {told}, to a client that had subscribed at {wide.value} and {exact.value}")


@owed(
    chapter,
    "15-overlapping",
    "has two matching subscriptions: a message comes at the higher QoS of the two, whichever was made first",
    "MQTT-3.3.4-2",
    older="MQTT-3.3.5-1",
)
async def _highest(parties: Parties) -> None:
    await _overlapping(parties, QoS.AT_MOST_ONCE, parties.best_qos)
    await _overlapping(parties, parties.best_qos, QoS.AT_MOST_ONCE)


@owed(chapter, "15-overlapping-ended", "ends one of two matching subscriptions: a message comes by the other, once",
      "MQTT-3.10.4-1", older="MQTT-3.10.4-1")  # fmt: skip
async def _one_ended(parties: Parties) -> None:
    device, sender = await parties.device(), await parties.service("sender")
    topic = parties.topic(device, "cmd/step")
    await device.subscribe(parties.topic(device, "cmd/#"), _ONCE)
    await device.subscribe(topic, _ONCE)
    await device.unsubscribe(topic)
    await sender.publish(topic, b"step")
    await exactly(device, [b"step"], "its command")


@owed(
    chapter,
    "15-granted",
    "publishes at QoS 0, 1 and 2 to subscriptions at each: a message comes at the lower of both",
    "MQTT-3.8.4-8",
    older="MQTT-3.8.4-6",
)
async def _granted(parties: Parties) -> None:
    device = await parties.device()
    topic = parties.topic(device, "telemetry")
    listeners: list[tuple[GoodClient, QoS]] = []
    for qos in QoS:
        listener = await parties.service()
        granted = await listener.subscribe(topic, qos)
        if granted > qos:
            raise BrokenPromise(f"QoS {granted.value} was granted to a client that had asked for {qos.value}")
        listeners.append((listener, granted))
    said = {f"at {qos.value}".encode(): qos for qos in QoS if qos <= parties.best_qos}
    for payload, qos in said.items():
        await device.publish(topic, payload, qos)
    for listener, granted in listeners:
        await listener.until_came(len(said), "what was said: not all came")
        for each in listener.came:
            if each.qos is not min(granted, said_at(each, said)):
                raise BrokenPromise(
                    f"QoS {each.qos.value} came to a client that was granted {granted.value}, "
                    f"said {each.payload.decode()}"
                )


@owed(
    chapter,
    "15-many-filters",
    "subscribes to three topics at three QoS in one packet: "
    "one SUBACK comes, with a code for each in order, and all are in force",
    "MQTT-3.8.4-5, MQTT-3.9.3-1",
    older="MQTT-3.8.4-4, MQTT-3.9.3-1",
)
async def _many(parties: Parties) -> None:
    device, sender = await parties.device(), await parties.service("sender")
    asked = (QoS.AT_LEAST_ONCE, QoS.AT_MOST_ONCE, parties.best_qos)
    topics = [parties.topic(device, f"cmd/{number}") for number in range(len(asked))]
    packet_id = device.new_id()
    await device.send(Subscribe(packet_id, tuple(map(SubscriptionRequest, topics, asked))))
    suback = await device.answered(Suback, packet_id)
    if [int(code) for code in suback.reason_codes] != [qos.value for qos in asked]:
        codes = " ".join(f"0x{code:02x}" for code in suback.reason_codes)
        raise BrokenPromise(
            f"SUBACK {codes} was the answer to a client that had asked for {' '.join(str(q.value) for q in asked)}"
        )
    granted = {str(number).encode(): qos for number, qos in enumerate(asked)}
    for topic, payload in zip(topics, granted, strict=True):
        await sender.publish(topic, payload, parties.best_qos)
    await device.until_came(len(topics), "its commands: not all came")
    for each in device.came:
        right = said_at(each, granted)
        if each.qos is not right:
            raise BrokenPromise(f"QoS {each.qos.value} came by the filter that was granted {right.value}")


@owed(
    chapter,
    "15-replaced",
    "subscribes again at a lower QoS: the new subscription replaces the old one, and a message comes once",
    "MQTT-3.8.4-3",
    older="MQTT-3.8.4-3",
)
async def _replaced(parties: Parties) -> None:
    device, sender = await parties.device(), await parties.service("sender")
    topic = parties.topic(device, "cmd/step")
    for number, qos in enumerate((parties.best_qos, QoS.AT_MOST_ONCE, _ONCE)):
        await device.subscribe(topic, qos)
        payload = f"{number}".encode()
        await sender.publish(topic, payload, parties.best_qos)
        await device.until_payloads([payload], "its command never came")
        await device.settled()
        if [each.qos for each in device.came if each.payload == payload] != [qos]:
            raise BrokenPromise(f"it did not come once and at QoS {qos.value}, as had been subscribed last")


@owed(chapter, "15-replaced-no-local", "subscribes again with No Local, and again without: the last one counts",
      "MQTT-3.8.4-3, MQTT-3.8.3-3", needs=_V5)  # fmt: skip
async def _replaced_no_local(parties: Parties) -> None:
    speaker, _, topic = await _speaking(parties, no_local=False)
    due: list[bytes] = []
    for payload, no_local in ((b"not to itself", True), (b"to itself", False)):
        await speaker.subscribe(topic, _ONCE, no_local=no_local)
        await speaker.publish(topic, payload)
        due += [] if no_local else [payload]
        await exactly(speaker, due, f"what it said itself, {'with' if no_local else 'without'} No Local")


@owed(
    chapter,
    "15-replaced-as-published",
    "subscribes again with Retain As Published, and again without: the last one counts",
    "MQTT-3.8.4-3, MQTT-3.3.1-13",
    needs=_V5,
)
async def _replaced_as_published(parties: Parties) -> None:
    device, listener = await parties.device(), await parties.service()
    topic = parties.topic(device, "state")
    asked = (False, True, False)
    for number, as_published in enumerate(asked):
        await listener.subscribe(topic, _ONCE, as_published=as_published, handling=RetainHandling.DO_NOT_SEND)
        await device.publish(topic, f"{number}".encode(), retain=True)
        parties.retained(device, topic)
    await exactly(listener, [b"0", b"1", b"2"], "live messages")
    if tuple(each.retain for each in listener.came) != asked:
        flags = " ".join(str(int(each.retain)) for each in listener.came)
        raise BrokenPromise(f"RETAIN was {flags}, and should have been 0 1 0")


@owed(
    chapter,
    "15-replaced-meanwhile",
    "subscribes again and again while messages come: none is missed or doubled",
    "MQTT-3.8.4-4",
    older="MQTT-3.8.4-3",
)
async def _replaced_meanwhile(parties: Parties) -> None:
    device, sender = await parties.device(), await parties.service("sender")
    topic = parties.topic(device, "cmd/step")
    await device.subscribe(topic, _ONCE)
    payloads = [f"{number:02d}".encode() for number in range(_MEANWHILE)]

    async def send() -> None:
        for payload in payloads:
            await sender.publish(topic, payload)

    sending = asyncio.create_task(send())
    try:
        while not sending.done():
            await device.subscribe(topic, _ONCE)
        await sending
    finally:
        sending.cancel()
    await exactly(device, payloads, "what was sent meanwhile")


# Ended subscriptions


@owed(chapter, "15-ended", "unsubscribes: nothing comes any more, nor after a reconnect",
      "MQTT-3.10.4-2", older="MQTT-3.10.4-2")  # fmt: skip
async def _ended(parties: Parties) -> None:
    device, sender = await parties.device(keeps=True), await parties.service("sender")
    topic, other = parties.topic(device, "cmd/step"), parties.topic(device, "cmd/other")
    await device.subscribe(other, _ONCE)
    await device.subscribe(topic, _ONCE)
    await device.unsubscribe(topic)
    await sender.publish(topic, b"live")
    await exactly(device, [], "who has unsubscribed")
    device.cut()
    await sender.publish(topic, b"away")
    device = await parties.returned(device)
    await sender.publish(other, b"other")
    await exactly(device, [b"other"], "the subscription that is left")


@owed(
    chapter,
    "15-ended-under-way",
    "unsubscribes with a message unacknowledged, loses its connection and reconnects: that message comes again",
    "MQTT-3.10.4-3",
    older="MQTT-3.10.4-3",
)
async def _under_way(parties: Parties) -> None:
    device, sender = await parties.device(keeps=True, answers=NOTHING), await parties.service("sender")
    topic = parties.topic(device, "cmd/step")
    await device.subscribe(parties.topic(device, "cmd/other"), _ONCE)
    await device.subscribe(topic, parties.best_qos)
    await sender.publish(topic, b"step", parties.best_qos)
    await device.until_came(1, "its command never came")
    await device.unsubscribe(topic)
    device.cut()
    device = await parties.returned(device, answers=EVERYTHING)
    await exactly(device, [b"step"], "what was under way")


# The client's own messages


async def _speaking(parties: Parties, *, no_local: bool, keeps: bool = False) -> tuple[GoodClient, GoodClient, str]:
    """Return a sender of commands that has subscribed to them, another sender, and the topic."""
    device = await parties.device()
    topic = parties.topic(device, "cmd/step")
    speaker, other = await parties.service("sender", keeps=keeps), await parties.service("sender")
    await speaker.subscribe(topic, _ONCE, no_local=no_local)
    return speaker, other, topic


@owed(chapter, "15-local", "subscribes to its own topic: its message comes, once", "MQTT-4.5.0-1", older="MQTT-4.5.0-1")
async def _local(parties: Parties) -> None:
    speaker, other, topic = await _speaking(parties, no_local=False)
    await speaker.publish(topic, b"own")
    await other.publish(topic, b"other")
    await exactly(speaker, [b"own", b"other"], "what itself and another said")


@owed(
    chapter,
    "15-no-local",
    "subscribes with No Local: its own messages do not come, others' do",
    "MQTT-3.8.3-3",
    needs=_V5,
)
async def _no_local(parties: Parties) -> None:
    speaker, other, topic = await _speaking(parties, no_local=True)
    await other.subscribe(topic, _ONCE)
    await speaker.publish(topic, b"own")
    await other.publish(topic, b"other")
    await exactly(speaker, [b"other"], "what others said")
    await exactly(other, [b"own", b"other"], "what both said, to a client that has not asked for No Local")


@owed(
    chapter,
    "15-no-local-retained",
    "retains a message and subscribes with No Local: that message does not come, another's does",
    "MQTT-3.8.3-3",
    needs=_V5,
)
async def _no_local_retained(parties: Parties) -> None:
    device, speaker, other = await parties.device(), await parties.service("sender"), await parties.service("sender")
    for who, name, payload in ((speaker, "mine", b"own"), (other, "theirs", b"other")):
        topic = parties.topic(device, f"cmd/{name}")
        await who.publish(topic, payload, retain=True)
        parties.retained(who, topic)
    for name in ("mine", "theirs"):  # Not by a wildcard: some brokers retain nothing for that (`10-many`).
        await speaker.subscribe(parties.topic(device, f"cmd/{name}"), _ONCE, no_local=True)
    await exactly(speaker, [b"other"], "what others said")


@owed(
    chapter,
    "15-no-local-returns",
    "subscribes with No Local and reconnects to its session: No Local is still in force",
    "MQTT-3.8.3-3, §4.1",
    needs=_V5,
)
async def _no_local_returns(parties: Parties) -> None:
    speaker, other, topic = await _speaking(parties, no_local=True, keeps=True)
    await speaker.say_goodbye()
    speaker = await parties.returned(speaker)
    await speaker.publish(topic, b"own")
    await other.publish(topic, b"other")
    await exactly(speaker, [b"other"], "what others said")


@owed(
    chapter,
    "15-as-published-returns",
    "subscribes with Retain As Published and reconnects to its session: it is still in force",
    "MQTT-3.3.1-13, §4.1",
    needs=_V5,
)
async def _as_published_returns(parties: Parties) -> None:
    device, listener = await parties.device(), await parties.service(keeps=True)
    topic = parties.topic(device, "state")
    await listener.subscribe(topic, _ONCE, as_published=True)
    await listener.say_goodbye()
    listener = await parties.returned(listener)
    await device.publish(topic, b"retained", retain=True)
    parties.retained(device, topic)
    await device.publish(topic, b"passing")
    await exactly(listener, [b"retained", b"passing"], "live messages")
    if [each.retain for each in listener.came] != [True, False]:
        flags = " ".join(str(int(each.retain)) for each in listener.came)
        raise BrokenPromise(f"RETAIN was {flags}, and should have been 1 0")


def _nothing(number: int) -> str:
    return f"nothing came to subscriber {number} of {_LISTENERS}"


@owed(
    chapter, "15-many-listeners", "publishes to 40 subscribers: each gets the message, once", "§4.7, MQTT-3.3.4-2",
    last=True,
)  # fmt: skip
async def _to_all(parties: Parties) -> None:
    device = await parties.device()
    topic = parties.topic(device, "telemetry")
    listeners = [await parties.service() for _ in range(_LISTENERS)]
    for listener in listeners:
        await listener.subscribe(topic, _ONCE)
    await device.publish(topic, b"to all")
    for number, listener in enumerate(listeners, 1):
        await listener.until_came(1, _nothing(number))
    await asyncio.gather(*(exactly(each, [b"to all"], "what was published") for each in listeners))
