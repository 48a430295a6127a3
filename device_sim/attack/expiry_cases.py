"""Case 9 of `fleet-sim delivery`: an expired message is not delivered, and one that waited has its interval reduced.

MQTT 5 §3.3.2.3.3: [MQTT-3.3.2-5], [MQTT-3.3.2-6]. A message in transit to a client that does not read may come late:
that is for §3.3.2.3.3 to settle and not judged.
"""

from __future__ import annotations

import asyncio

from broker.mqtt.codes import QoS
from broker.mqtt.packets import Publish
from broker.mqtt.properties import Properties
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import GoodClient, Parties
from device_sim.attack.owed import exactly, owed
from device_sim.attack.target import BrokenPromise

_SHORT = 1
_LONG = 100
_WAIT = 2.3
"""Longer than the short lifetime by a little over two seconds, however a broker rounds."""
_AT_LEAST = 2
_PATIENT = 60
"""Extra seconds that a run may take on a slow machine; a broker that does not count down shows all of them."""
_V5 = (Feature.MQTT5,)

chapter = Chapter()


def _lives(seconds: int) -> Properties:
    return Properties(message_expiry_interval=seconds)


def _counted_down(came: Publish) -> None:
    left = came.properties.message_expiry_interval
    if left is None or not _LONG - _AT_LEAST - _PATIENT <= left <= _LONG - _AT_LEAST:
        raise BrokenPromise(f"it waited for {_WAIT} s of {_LONG}, and came with an expiry interval of {left}")


async def _away(parties: Parties) -> tuple[GoodClient, GoodClient]:
    """Return a device that has left a session subscribed to its commands, and a sender of commands."""
    device = await parties.device(keeps=True)
    await device.subscribe(parties.topic(device, "cmd/#"), QoS.AT_LEAST_ONCE)
    await device.say_goodbye()
    return device, await parties.service("sender")


@owed(
    chapter,
    "9-expired-queued",
    "reconnects when one of its queued messages has expired: it gets the others only",
    "MQTT-3.3.2-5",
    needs=_V5,
)
async def _expired_queued(parties: Parties) -> None:
    device, sender = await _away(parties)
    topic = parties.topic(device, "cmd/step")
    await sender.publish(topic, b"expires", properties=_lives(_SHORT))
    await sender.publish(topic, b"stays", properties=_lives(_LONG))
    await sender.publish(topic, b"lasts")
    await asyncio.sleep(_WAIT)
    device = await parties.returned(device)
    await exactly(device, [b"stays", b"lasts"], "what had not expired")


@owed(
    chapter,
    "9-queued-counts-down",
    "reconnects to a queued message: its expiry interval is shorter by the time it has waited",
    "MQTT-3.3.2-6",
    needs=_V5,
)
async def _queued_counts_down(parties: Parties) -> None:
    device, sender = await _away(parties)
    await sender.publish(parties.topic(device, "cmd/step"), b"stays", properties=_lives(_LONG))
    await asyncio.sleep(_WAIT)
    device = await parties.returned(device)
    await exactly(device, [b"stays"], "what had not expired")
    _counted_down(device.came[0])


@owed(
    chapter,
    "9-expired-retained",
    "retains a message that expires: a later subscriber gets nothing",
    "MQTT-3.3.2-5",
    needs=_V5,
)
async def _expired_retained(parties: Parties) -> None:
    device = await parties.device()
    topic = parties.topic(device, "state")
    await device.publish(topic, b"expires", retain=True, properties=_lives(_SHORT))
    parties.retained(device, topic)
    await asyncio.sleep(_WAIT)
    listener = await parties.service()
    await listener.subscribe(topic)
    await listener.settled()
    if listener.came:
        raise BrokenPromise(f"a retained message was delivered {_WAIT} s after it was published to live for {_SHORT} s")


@owed(
    chapter,
    "9-retained-counts-down",
    "retains a message that expires later: its expiry interval is shorter by the time it has waited",
    "MQTT-3.3.2-6",
    needs=_V5,
)
async def _retained_counts_down(parties: Parties) -> None:
    device = await parties.device()
    topic = parties.topic(device, "state")
    await device.publish(topic, b"stays", retain=True, properties=_lives(_LONG))
    parties.retained(device, topic)
    await asyncio.sleep(_WAIT)
    listener = await parties.service()
    await listener.subscribe(topic)
    await listener.until_came(1, "what was retained never came")
    _counted_down(listener.came[0])


@owed(
    chapter,
    "9-delivered-at-once",
    "is connected: a message that expires soon comes at once, with its expiry interval",
    "MQTT-3.3.2-6",
    needs=_V5,
)
async def _at_once(parties: Parties) -> None:
    device = await parties.device()
    await device.subscribe(parties.topic(device, "cmd/#"), QoS.AT_LEAST_ONCE)
    sender = await parties.service("sender")
    await sender.publish(parties.topic(device, "cmd/step"), b"soon", properties=_lives(_LONG))
    await exactly(device, [b"soon"], "its message")
    left = device.came[0].properties.message_expiry_interval
    if left is None or not _LONG - _PATIENT <= left <= _LONG:
        raise BrokenPromise(f"it was published to live for {_LONG} s, and came with an expiry interval of {left}")
