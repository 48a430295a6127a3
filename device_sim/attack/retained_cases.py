"""Case 10 of `fleet-sim delivery`: which messages are retained, who gets them, and with which RETAIN flag.

MQTT 5 §3.3.1.3, §3.8.3.1; 3.1.1 §3.3.1.3. In 3.1.1 a live message never has RETAIN; in 5 the subscriber chooses.
"""

from __future__ import annotations

from broker.mqtt.codes import QoS, RetainHandling
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import GoodClient, Parties
from device_sim.attack.owed import exactly, once_each, owed
from device_sim.attack.target import BrokenPromise

_V5 = (Feature.MQTT5,)
_ONCE = QoS.AT_LEAST_ONCE

chapter = Chapter()


def _flagged(client: GoodClient, *flags: bool) -> None:
    """Raise `BrokenPromise` if what reached *client* does not have these RETAIN *flags*."""
    came = tuple(each.retain for each in client.came)
    if came != flags:
        told, right = ("".join(f" {int(each)}" for each in several) for several in (came, flags))
        raise BrokenPromise(f"RETAIN was{told}, and should have been{right}")


async def _live(parties: Parties, *, as_published: bool) -> None:
    device, listener = await parties.device(), await parties.service()
    topic = parties.topic(device, "state")
    await listener.subscribe(topic, _ONCE, as_published=as_published)
    await device.publish(topic, b"retained", retain=True)
    parties.retained(device, topic)
    await device.publish(topic, b"passing")
    await exactly(listener, [b"retained", b"passing"], "live messages")
    _flagged(listener, as_published, False)


@owed(
    chapter,
    "10-live",
    "publishes with and without RETAIN to an existing subscriber: both arrive without RETAIN",
    "MQTT-3.3.1-12",
    older="MQTT-3.3.1-9",
)
async def _live_plain(parties: Parties) -> None:
    await _live(parties, as_published=False)


@owed(
    chapter,
    "10-live-as-published",
    "does the same to a subscriber with Retain As Published: RETAIN is as it was sent",
    "MQTT-3.3.1-13",
    needs=_V5,
)
async def _live_as_published(parties: Parties) -> None:
    await _live(parties, as_published=True)


@owed(
    chapter,
    "10-stored",
    "retains a message: a later subscriber gets the last one, with RETAIN",
    "MQTT-3.3.1-5, §3.8.3.1",
    older="MQTT-3.3.1-6, MQTT-3.3.1-8",
)
async def _stored(parties: Parties) -> None:
    device = await parties.device()
    topic = parties.topic(device, "state")
    for payload in (b"first", b"last"):
        await device.publish(topic, payload, retain=True)
    parties.retained(device, topic)
    await device.publish(topic, b"passing")
    listener = await parties.service()
    await listener.subscribe(topic, _ONCE)
    await exactly(listener, [b"last"], "what is retained")
    _flagged(listener, True)


@owed(
    chapter,
    "10-cleared",
    "clears a retained message with an empty one: a later subscriber gets nothing",
    "MQTT-3.3.1-6, MQTT-3.3.1-7",
    older="MQTT-3.3.1-10, MQTT-3.3.1-11",
)
async def _cleared(parties: Parties) -> None:
    device, listener = await parties.device(), await parties.service()
    topic = parties.topic(device, "state")
    await device.publish(topic, b"stored", retain=True)
    parties.retained(device, topic)
    await listener.subscribe(topic, _ONCE)
    await listener.until_came(1, "what was retained never came")
    await device.publish(topic, b"", retain=True)
    # A current subscriber receives it like any message.
    await exactly(listener, [b"stored", b""], "what was retained, and its end")
    later = await parties.service()
    await later.subscribe(topic, _ONCE)
    await later.settled()
    if later.came:
        raise BrokenPromise("what was cleared is retained still")


async def _handled(parties: Parties, handling: RetainHandling, *counts: int) -> None:
    """Subscribe twice with *handling*; these *counts* of retained messages must arrive each time."""
    device, listener = await parties.device(), await parties.service()
    topic = parties.topic(device, "state")
    await device.publish(topic, b"stored", retain=True)
    parties.retained(device, topic)
    for count in counts:
        await listener.subscribe(topic, _ONCE, handling=handling)
        await listener.until_came(count, "what was retained never came")
        await listener.settled()
        if len(listener.came) != count:
            raise BrokenPromise(
                f"{len(listener.came)} retained messages came in all with retain handling {handling.value}, "
                f"and {count} were due"
            )


@owed(
    chapter,
    "10-handling-0",
    "retains a message: a client that subscribes twice gets it twice (Retain Handling 0)",
    "MQTT-3.3.1-9, MQTT-3.8.4-4",
    older="MQTT-3.8.4-3",
)
async def _handling_send(parties: Parties) -> None:
    await _handled(parties, RetainHandling.SEND, 1, 2)


@owed(
    chapter,
    "10-handling-1",
    "retains a message: a client that subscribes twice gets it once (Retain Handling 1)",
    "MQTT-3.3.1-10",
    needs=_V5,
)
async def _handling_new(parties: Parties) -> None:
    await _handled(parties, RetainHandling.SEND_IF_NEW, 1, 1)


@owed(
    chapter,
    "10-handling-2",
    "retains a message: a subscriber gets nothing (Retain Handling 2)",
    "MQTT-3.3.1-11",
    needs=_V5,
)
async def _handling_none(parties: Parties) -> None:
    await _handled(parties, RetainHandling.DO_NOT_SEND, 0, 0)


@owed(chapter, "10-many", "retains messages at two topics: a wildcard subscription gets both, with RETAIN",
      "MQTT-3.3.1-9, §3.8.4", older="MQTT-3.3.1-6")  # fmt: skip
async def _many(parties: Parties) -> None:
    device, listener = await parties.device(), await parties.service()
    for suffix in ("state", "telemetry"):
        topic = parties.topic(device, suffix)
        await device.publish(topic, suffix.encode(), retain=True)
        parties.retained(device, topic)
    await listener.subscribe(parties.topic(device, "+"), _ONCE)
    await listener.until_came(2, "what was retained at two topics: not all came")
    await listener.settled()
    once_each(listener.payloads, [b"state", b"telemetry"], "what was retained at two topics")
    _flagged(listener, True, True)


@owed(
    chapter,
    "10-stored-qos",
    "retains a message at its highest QoS: subscribers at QoS 0 and at that QoS get it at the lower of both",
    "MQTT-3.3.1-5, MQTT-3.8.4-8",
    older="MQTT-3.3.1-5, MQTT-3.8.4-6",
)
async def _stored_qos(parties: Parties) -> None:
    device = await parties.device()
    topic = parties.topic(device, "state")
    await device.publish(topic, b"stored", parties.best_qos, retain=True)
    parties.retained(device, topic)
    for qos in (QoS.AT_MOST_ONCE, parties.best_qos):
        listener = await parties.service()
        await listener.subscribe(topic, qos)
        await exactly(listener, [b"stored"], "what is retained")
        if listener.came[0].qos is not qos:
            got = listener.came[0].qos.value
            raise BrokenPromise(f"it came at QoS {got} to a client that had subscribed at {qos.value}")


@owed(chapter, "10-outlives", "retains a message, and its session ends: a later subscriber gets it", "§4.1",
      older="MQTT-3.1.2-7")  # fmt: skip
async def _outlives(parties: Parties) -> None:
    device = await parties.device()
    topic = parties.topic(device, "state")
    await device.publish(topic, b"stored", retain=True)
    await device.say_goodbye()
    parties.retained(await parties.device(device.paper), topic)
    listener = await parties.service()
    await listener.subscribe(topic, _ONCE)
    await exactly(listener, [b"stored"], "what is retained")


@owed(
    chapter,
    "10-handling-1-returns",
    "reconnects to its session and subscribes again with Retain Handling 1: "
    "it gets nothing, and after unsubscribing the retained message",
    "MQTT-3.3.1-10",
    needs=_V5,
)
async def _handling_new_returns(parties: Parties) -> None:
    device, listener = await parties.device(), await parties.service(keeps=True)
    topic = parties.topic(device, "state")
    await device.publish(topic, b"stored", retain=True)
    parties.retained(device, topic)
    await listener.subscribe(topic, _ONCE, handling=RetainHandling.DO_NOT_SEND)
    await listener.say_goodbye()
    listener = await parties.returned(listener)
    await listener.subscribe(topic, _ONCE, handling=RetainHandling.SEND_IF_NEW)
    await exactly(listener, [], "a subscription that was there")
    await listener.unsubscribe(topic)
    await listener.subscribe(topic, _ONCE, handling=RetainHandling.SEND_IF_NEW)
    await exactly(listener, [b"stored"], "a subscription that is new")
