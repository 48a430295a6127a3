"""Cases 17 and 21 of `fleet-sim delivery`: who may stay connected, under which name, and how long sessions are kept.

MQTT 5 §3.1.2.10 (Keep Alive), §3.1.3.1 (Client Identifier), §3.1.2.11.2 and §3.14.2.2.2 (Session Expiry Interval);
3.1.1 §3.1.2.10, §3.1.3.1, §3.1.2.4. A client that is silent too long is `41-freezes` of `fleet-sim attack`.
"""

from __future__ import annotations

import asyncio

from broker.mqtt.codes import QoS
from broker.mqtt.packets import Publish
from broker.mqtt.properties import Properties
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import SESSION_SECONDS, GoodClient, Parties
from device_sim.attack.owed import exactly, owed
from device_sim.attack.target import BrokenPromise, Impossible, TurnedAway

_V5 = (Feature.MQTT5,)
_ONCE = QoS.AT_LEAST_ONCE
_KEEP_ALIVE = 3
_OFTEN = 0.7
"""The fraction of its keep alive between two packets of a compliant client; the rest, and the extra half that the
standard allows, is for a busy machine."""
_ROUNDS = 4
_LONG = 6.0
_SHORT = 1
_WAIT = 3.3
"""Longer than the short lifetime by a bit more than two seconds, however a broker rounds and whenever it checks."""

chapter = Chapter()


# 17: who may stay connected, and under which name


@owed(
    chapter,
    "17-keep-alive",
    "sends a PINGREQ or a message within each keep alive, its own or the broker's: it stays connected",
    "MQTT-3.1.2-21, MQTT-3.1.2-22, MQTT-3.12.4-1",
    older="MQTT-3.1.2-24, MQTT-3.12.4-1",
)
async def _keeps_alive(parties: Parties) -> None:
    device = await parties.device(keep_alive=_KEEP_ALIVE)
    interval = device.raw.keep_alive
    if interval > _LONG:  # The broker's own applies: then silence for the client's own must do no harm.
        await asyncio.sleep(_LONG)
        await device.pinged()
        return
    for number in range(_ROUNDS):
        await asyncio.sleep(interval * _OFTEN)
        if number % 2:
            await device.send(Publish(parties.topic(device, "telemetry"), b"alive"))
        else:
            await device.pinged()
    await device.pinged()


@owed(
    chapter,
    "17-assigned",
    "connects twice without a client identifier: "
    "both stay connected, each with its own identifier, and a message to one does not disconnect the other",
    "MQTT-3.1.3-6, MQTT-3.1.3-7, MQTT-3.2.2-16",
    older="MQTT-3.1.3-6",
)
async def _assigned(parties: Parties) -> None:
    known = await parties.service()  # So that a refusal for a missing identifier has no other cause.
    nameless = []
    for _ in range(2):
        try:
            nameless.append(await parties.service(name=""))
        except TurnedAway as error:
            raise Impossible(
                f"the broker takes nobody without a client identifier, which it need not: {error}"
            ) from error
    if parties.is_v5:
        names = [each.told.assigned_client_identifier for each in nameless]
        if not all(names):
            raise BrokenPromise("CONNACK did not tell the client identifier that was assigned")
        if len({*names, known.name}) != len(nameless) + 1:
            raise BrokenPromise(f"the client identifiers that were assigned are not new: {', '.join(map(str, names))}")
    device = await parties.device()
    topic = parties.topic(device, "telemetry")
    for each in nameless:
        await each.subscribe(topic, _ONCE)
    await device.publish(topic, b"said")
    for each in nameless:
        await exactly(each, [b"said"], "what was said to both")


@owed(
    chapter,
    "17-assigned-returns",
    "reconnects with the client identifier that it was assigned: its session is there",
    "MQTT-3.1.3-7",
    needs=_V5,
)
async def _assigned_returns(parties: Parties) -> None:
    await parties.service()
    try:
        nameless = await parties.service(name="", keeps=True)
    except TurnedAway as error:
        raise Impossible(f"the broker takes nobody without a client identifier, which it need not: {error}") from error
    device = await parties.device()
    await nameless.subscribe(parties.topic(device, "telemetry"), _ONCE)
    await nameless.say_goodbye()
    await device.publish(parties.topic(device, "telemetry"), b"said")
    nameless = await parties.returned(nameless, name=nameless.told.assigned_client_identifier)
    await exactly(nameless, [b"said"], "what was queued for it")


# 21: how long a session is kept


async def _leaving(parties: Parties, seconds: int) -> GoodClient:
    """Return a device whose session is to be kept for *seconds*; raise `Impossible` if the broker says otherwise."""
    device = await parties.device(keeps=True, seconds=seconds)
    told = device.told.session_expiry_interval
    if told not in {None, seconds}:
        raise Impossible(f"the broker keeps sessions for {told} s, whoever asks for {seconds} s")
    await device.subscribe(parties.topic(device, "cmd/#"), _ONCE)
    return device


async def _command(parties: Parties, device: GoodClient) -> None:
    sender = await parties.service("sender")
    await sender.publish(parties.topic(device, "cmd/step"), b"queued")


async def _gone(parties: Parties, device: GoodClient) -> None:
    """Raise `BrokenPromise` if *device* still finds a session."""
    again = await parties.device(device.paper, keeps=True, clean=False)
    await again.settled()
    if again.session_present or again.came:
        raise BrokenPromise("its session was there still (CONNACK with session present), or what had been sent to that")


@owed(chapter, "21-session-ends", "reconnects when its session has expired: the session is gone, with its messages",
      "MQTT-4.1.0-2", needs=_V5)  # fmt: skip
async def _expires(parties: Parties) -> None:
    device = await _leaving(parties, _SHORT)
    device.cut()
    await _command(parties, device)
    await asyncio.sleep(_WAIT)
    await _gone(parties, device)


@owed(
    chapter,
    "21-session-ends-at-once",
    "has no session to keep, loses its connection and reconnects: nothing is left",
    "MQTT-3.1.2-23, MQTT-4.1.0-2",
    older="MQTT-3.1.2-6",
)
async def _ends_at_once(parties: Parties) -> None:
    device = await parties.device()
    await device.subscribe(parties.topic(device, "cmd/#"), _ONCE)
    device.raw.close()
    await _command(parties, device)
    await _gone(parties, device)


@owed(chapter, "21-session-ended-at-goodbye", "ends its session in DISCONNECT: the session is gone",
      "§3.14.2.2.2", needs=_V5)  # fmt: skip
async def _ended_at_goodbye(parties: Parties) -> None:
    device = await _leaving(parties, SESSION_SECONDS)
    await device.say_goodbye(properties=Properties(session_expiry_interval=0))
    await _command(parties, device)
    await _gone(parties, device)


@owed(
    chapter,
    "21-session-prolonged-at-goodbye",
    "prolongs its session in DISCONNECT: the session is there, with its messages",
    "§3.14.2.2.2",
    needs=_V5,
)
async def _prolonged_at_goodbye(parties: Parties) -> None:
    device = await _leaving(parties, _SHORT)
    await device.say_goodbye(properties=Properties(session_expiry_interval=SESSION_SECONDS))
    await _command(parties, device)
    await asyncio.sleep(_WAIT)
    device = await parties.returned(device)
    await exactly(device, [b"queued"], "what was queued for it")


@owed(chapter, "21-session-prolonged", "reconnects in time and asks for a longer session: the last interval counts",
      "MQTT-3.1.2-23", needs=_V5)  # fmt: skip
async def _prolonged(parties: Parties) -> None:
    device = await _leaving(parties, _SHORT + 2)
    device.cut()
    device = await parties.returned(device)
    device.cut()
    await _command(parties, device)
    await asyncio.sleep(_WAIT + 2)
    device = await parties.returned(device)
    await exactly(device, [b"queued"], "what was queued for it")
