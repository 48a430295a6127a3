"""Case 10 of `fleet-sim delivery`: what is retained, to whom it comes, and with which RETAIN flag.

MQTT 5 §3.3.1.3, §3.8.3.1; 3.1.1 §3.3.1.3. In 3.1.1 a live message never has RETAIN; in 5 who subscribes says whether.
"""

from __future__ import annotations

from functools import partial

from broker.mqtt.codes import QoS, RetainHandling
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import GoodClient, Parties
from device_sim.attack.owed import exactly, owed
from device_sim.attack.target import BrokenPromise

_V5 = (Feature.MQTT5,)
_ONCE = QoS.AT_LEAST_ONCE

chapter = Chapter()


def _flagged(client: GoodClient, *flags: bool) -> None:
    """Raise `BrokenPromise` if what came to *client* does not bear these RETAIN *flags*."""
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


@owed(chapter, "10-live", "publishes with and without RETAIN to an existing subscriber: both arrive without RETAIN")
async def _live_plain(parties: Parties) -> None:
    await _live(parties, as_published=False)


@owed(chapter, "10-live-as-published", "the same with retain as published: RETAIN is as it was sent", needs=_V5)
async def _live_as_published(parties: Parties) -> None:
    await _live(parties, as_published=True)


@owed(chapter, "10-stored", "retains a message: a later subscriber gets the last one, with RETAIN")
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


@owed(chapter, "10-cleared", "clears what it retained, by an empty message: a later subscriber gets nothing")
async def _cleared(parties: Parties) -> None:
    device, listener = await parties.device(), await parties.service()
    topic = parties.topic(device, "state")
    await device.publish(topic, b"stored", retain=True)
    parties.retained(device, topic)
    await listener.subscribe(topic, _ONCE)
    await listener.until(lambda: bool(listener.came), "what was retained never came")
    await device.publish(topic, b"", retain=True)
    # Who is subscribed hears of it like of any message.
    await exactly(listener, [b"stored", b""], "what was retained, and its end")
    later = await parties.service()
    await later.subscribe(topic, _ONCE)
    await later.settled()
    if later.came:
        raise BrokenPromise("what was cleared is retained still")


def _at_least(listener: GoodClient, count: int) -> bool:
    return len(listener.came) >= count


async def _handled(parties: Parties, handling: RetainHandling, *counts: int) -> None:
    """Subscribe twice with *handling*; so many retained messages have to have come behind each."""
    device, listener = await parties.device(), await parties.service()
    topic = parties.topic(device, "state")
    await device.publish(topic, b"stored", retain=True)
    parties.retained(device, topic)
    for count in counts:
        await listener.subscribe(topic, _ONCE, handling=handling)
        await listener.until(partial(_at_least, listener, count), "what was retained never came")
        await listener.settled()
        if len(listener.came) != count:
            raise BrokenPromise(
                f"{len(listener.came)} retained messages came in all with retain handling {handling.value}, "
                f"and {count} were due"
            )


@owed(chapter, "10-handling-0", "retains a message: a client that subscribes twice gets it twice", needs=_V5)
async def _handling_send(parties: Parties) -> None:
    await _handled(parties, RetainHandling.SEND, 1, 2)


@owed(
    chapter,
    "10-handling-1",
    "retains a message: a client that asks for it with new subscriptions only gets it once",
    needs=_V5,
)
async def _handling_new(parties: Parties) -> None:
    await _handled(parties, RetainHandling.SEND_IF_NEW, 1, 1)


@owed(chapter, "10-handling-2", "retains a message: a client that asks for none gets none", needs=_V5)
async def _handling_none(parties: Parties) -> None:
    await _handled(parties, RetainHandling.DO_NOT_SEND, 0, 0)
