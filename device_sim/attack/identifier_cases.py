"""Case 14 of `fleet-sim delivery`: subscription identifiers, which tell a subscriber why a message came.

MQTT 5 §3.3.4, §3.8.2.1.2, §3.8.4. A message that matches several subscriptions comes once with all their identifiers,
or once for each with its own: both are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from broker.mqtt.codes import QoS
from broker.mqtt.packets import Publish
from broker.mqtt.properties import Properties
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import GoodClient, Parties
from device_sim.attack.owed import exactly, owed
from device_sim.attack.target import BrokenPromise, Impossible

_V5 = (Feature.MQTT5,)
_ONCE = QoS.AT_LEAST_ONCE
_LARGEST = 268_435_455

chapter = Chapter()


def _able(client: GoodClient) -> None:
    if client.told.subscription_identifier_available is False:
        raise Impossible("the broker has no subscription identifiers: CONNACK says so")


def _borne(came: Sequence[Publish], *right: int) -> None:
    """Raise `BrokenPromise` if *came*, all copies taken together, does not have exactly these identifiers."""
    borne = sorted(each for copy in came for each in copy.properties.subscription_identifiers)
    if borne != sorted(right):
        told, due = (", ".join(map(str, several)) or "none" for several in (borne, right))
        raise BrokenPromise(f"the subscription identifiers that came were {told}; due: {due}")


async def _party(parties: Parties, **fields: Any) -> tuple[GoodClient, GoodClient, str]:
    """Return a device, a sender of commands, and the topic of a command."""
    device = await parties.device(**fields)
    _able(device)
    return device, await parties.service("sender"), parties.topic(device, "cmd/step")


async def _got(device: GoodClient, payload: bytes) -> list[Publish]:
    """Return all copies of *payload* that reach *device*."""
    await device.until_payloads([payload], "its command never came")
    await device.settled()
    return [each for each in device.came if each.payload == payload]


@owed(
    chapter,
    "14-identifier",
    "subscribes with identifiers 7 and 268,435,455: each message has that of its subscription",
    "MQTT-3.3.4-3",
    needs=_V5,
)
async def _plain(parties: Parties) -> None:
    device, sender, _ = await _party(parties)
    topics = {7: parties.topic(device, "cmd/small"), _LARGEST: parties.topic(device, "cmd/large")}
    for identifier, topic in topics.items():
        await device.subscribe(topic, _ONCE, identifier=identifier)
    for identifier, topic in topics.items():
        await sender.publish(topic, str(identifier).encode())
        _borne(await _got(device, str(identifier).encode()), identifier)


@owed(
    chapter,
    "14-identifiers",
    "has three matching subscriptions, two of them with identifiers: a message has both identifiers, and no other",
    "MQTT-3.3.4-4, MQTT-3.3.4-5",
    needs=_V5,
)
async def _several(parties: Parties) -> None:
    device, sender, topic = await _party(parties)
    await device.subscribe(parties.topic(device, "cmd/#"), _ONCE, identifier=1)
    await device.subscribe(parties.topic(device, "cmd/+"), _ONCE)
    await device.subscribe(topic, _ONCE, identifier=2)
    await device.subscribe(parties.topic(device, "cmd/other"), _ONCE, identifier=3)
    await sender.publish(topic, b"step")
    copies = await _got(device, b"step")
    _borne(copies, 1, 2)
    if len(copies) > 3:  # noqa: PLR2004 - one for each that matches, at most.
        raise BrokenPromise(f"{len(copies)} copies came, and three subscriptions match")


@owed(
    chapter,
    "14-identifiers-alike",
    "has two matching subscriptions with the same identifier: a message has it twice",
    "§3.3.4",
    needs=_V5,
)
async def _alike(parties: Parties) -> None:
    device, sender, topic = await _party(parties)
    await device.subscribe(parties.topic(device, "cmd/#"), _ONCE, identifier=5)
    await device.subscribe(topic, _ONCE, identifier=5)
    await sender.publish(topic, b"step")
    copies = await _got(device, b"step")
    if [each for copy in copies for each in copy.properties.subscription_identifiers] == [5]:
        raise BrokenPromise("one identifier came, and two subscriptions with it match", advised=True)
    _borne(copies, 5, 5)


@owed(
    chapter,
    "14-identifier-returns",
    "reconnects to its session: queued and new messages have the identifier",
    "§3.8.4, MQTT-3.3.4-3",
    needs=_V5,
)
async def _returns(parties: Parties) -> None:
    device, sender, topic = await _party(parties, keeps=True)
    await device.subscribe(topic, _ONCE, identifier=9)
    await device.say_goodbye()
    await sender.publish(topic, b"queued")
    device = await parties.returned(device)
    _borne(await _got(device, b"queued"), 9)
    await sender.publish(topic, b"live")
    _borne(await _got(device, b"live"), 9)


@owed(chapter, "14-identifier-replaced", "subscribes again with another identifier, and with none: the old one is gone",
      "§3.8.4, MQTT-3.8.4-3", needs=_V5)  # fmt: skip
async def _replaced(parties: Parties) -> None:
    device, sender, topic = await _party(parties)
    for payload, identifier in ((b"one", 1), (b"two", 2), (b"none", None), (b"three", 3)):
        await device.subscribe(topic, _ONCE, identifier=identifier)
        await sender.publish(topic, payload)
        _borne(await _got(device, payload), *(() if identifier is None else (identifier,)))


@owed(
    chapter,
    "14-identifier-unsubscribed",
    "ends one of two matching subscriptions: a message has the other's identifier only",
    "§3.8.4, MQTT-3.10.4-1",
    needs=_V5,
)
async def _unsubscribed(parties: Parties) -> None:
    device, sender, topic = await _party(parties)
    await device.subscribe(parties.topic(device, "cmd/#"), _ONCE, identifier=1)
    await device.subscribe(topic, _ONCE, identifier=2)
    await device.unsubscribe(topic)
    await sender.publish(topic, b"step")
    _borne(await _got(device, b"step"), 1)


@owed(chapter, "14-identifier-others", "publishes to two subscribers with different identifiers: each gets its own",
      "§3.3.4", needs=_V5)  # fmt: skip
async def _others(parties: Parties) -> None:
    device = await parties.device()
    _able(device)
    topic = parties.topic(device, "telemetry")
    listeners = [await parties.service() for _ in range(2)]
    for identifier, listener in enumerate(listeners, 1):
        await listener.subscribe(topic, _ONCE, identifier=identifier)
    await device.publish(topic, b"said")
    for identifier, listener in enumerate(listeners, 1):
        _borne(await _got(listener, b"said"), identifier)


@owed(
    chapter,
    "14-identifier-shared",
    "publishes to two members of a shared subscription with different identifiers: each gets its own",
    "§3.3.4",
    needs=_V5,
)
async def _shared(parties: Parties) -> None:
    device = await parties.device()
    _able(device)
    if device.told.shared_subscription_available is False:
        raise Impossible("the broker has no shared subscriptions: CONNACK says so")
    topic = parties.topic(device, "telemetry")
    members = [await parties.service() for _ in range(2)]
    for identifier, member in enumerate(members, 1):
        await member.subscribe(f"$share/ours/{topic}", _ONCE, identifier=identifier)
    for number in range(8):
        await device.publish(topic, f"{number}".encode())
    for member in members:
        await member.settled()
    if not any(member.came for member in members):
        raise BrokenPromise("nothing came to those who share", never=True)
    for identifier, member in enumerate(members, 1):
        for each in member.came:
            _borne([each], identifier)


@owed(chapter, "14-identifier-retained", "has retained a message: a subscriber with an identifier gets it with that",
      "MQTT-3.3.4-3", needs=_V5)  # fmt: skip
async def _retained(parties: Parties) -> None:
    device, listener = await parties.device(), await parties.service()
    _able(device)
    state = parties.topic(device, "state")
    await device.publish(state, b"stored", retain=True)
    parties.retained(device, state)
    await listener.subscribe(state, _ONCE, identifier=4)
    await exactly(listener, [b"stored"], "what is retained")
    _borne(listener.came, 4)


@owed(
    chapter,
    "14-identifier-sent",
    "sends a PUBLISH with a subscription identifier, which it must not: subscribers do not get that identifier",
    "MQTT-3.3.4-6",
    needs=_V5,
)
async def _sent(parties: Parties) -> None:
    device, listener = await parties.device(), await parties.service()
    _able(device)
    topic = parties.topic(device, "telemetry")
    await listener.subscribe(topic, _ONCE, identifier=1)
    await device.taken(Publish(topic, b"said", properties=Properties(subscription_identifiers=(77,))))
    await listener.settled()
    for each in listener.came:  # A broker that treats it as a protocol error delivers nothing: that is right.
        _borne([each], 1)
