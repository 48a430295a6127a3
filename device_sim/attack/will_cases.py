"""Cases 1 to 4 of `fleet-sim delivery`: wills are sent when they must be, as they were set, and not otherwise.

MQTT 5 §3.1.2.5, §3.1.3.2, §3.14.4; 3.1.1 §3.1.2.5. The will of a client that freezes is `41-will-of-frozen` of
`fleet-sim attack`, that of a revoked one `38-will-of-revoked`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.connect import Will
from broker.mqtt.packets import Publish
from broker.mqtt.properties import Properties
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import SESSION_SECONDS, GoodClient, Parties
from device_sim.attack.owed import as_told, exactly, not_delivered, owed
from device_sim.attack.scene import SOON
from device_sim.attack.target import BrokenPromise, Impossible
from device_sim.attack.verdict import Seen

_NEVER = "its will was never sent"
_DELAY = 2
_EARLY = 0.2
"""Seconds by which a will may come early: a delay is in whole seconds, and a broker's clock may lag at its start."""
_OFTEN = 4
"""How often a device could come back in the time that is given to it."""
_LONG_DELAY = 600
_LIFE = 60
_RESERVED_TYPE = b"\x00\x00"
_V5 = (Feature.MQTT5,)

chapter = Chapter()

End = Callable[[Parties, GoodClient], Awaitable[None]]


async def _left(
    parties: Parties, *, keeps: bool = False, delay: int | None = None, seconds: int = SESSION_SECONDS
) -> tuple[GoodClient, GoodClient, bytes]:
    """Return a listener, a device with a will, and that will's payload."""
    await parties.scene.watcher()  # It receives what arrives after the case is over.
    paper = await parties.scene.device()
    topic, payload = parties.topic(paper, "state"), f"will of {paper.name}".encode()
    listener = await parties.service()
    await listener.subscribe(topic, parties.best_qos)
    will = Will(topic, payload, QoS.AT_LEAST_ONCE, properties=Properties(will_delay_interval=delay))
    device = await parties.device(paper, will=will, keeps=keeps, seconds=seconds)
    if keeps:  # Some brokers do not keep a session without a subscription.
        await device.subscribe(parties.topic(device, "cmd/#"), QoS.AT_LEAST_ONCE)
    return listener, device, payload


async def _time_to_return(parties: Parties, least: int) -> int:
    """Return a will delay, in seconds, within which a device can come back here: *least* unless that takes long."""
    started = time.monotonic()
    await parties.device()
    return least + int(_OFTEN * (time.monotonic() - started))


async def _returned_in(parties: Parties, device: GoodClient, delay: int) -> GoodClient:
    """Cut *device* off, and return its next connection; raise `Impossible` if it is not back within its will *delay*.

    Across a long link, or on a slow machine, it may be late, and then its will is sent rightly.
    """
    cut = time.monotonic()
    device.cut()
    again = await parties.returned(device)
    took = time.monotonic() - cut
    if took > delay - _EARLY:
        raise Impossible(f"it took {took:.1f} s to come back, its will delay was {delay} s: run fleet-sim nearer to it")
    return again


async def _once(listener: GoodClient, payload: bytes) -> None:
    """Return when the will *payload* has arrived, once."""
    await listener.until_came(1, _NEVER)
    await exactly(listener, [payload], "its will")


# 1: sent


async def _reset(_parties: Parties, device: GoodClient) -> None:
    device.cut()


async def _close(_parties: Parties, device: GoodClient) -> None:
    device.raw.close()


async def _ask_for_it(_parties: Parties, device: GoodClient) -> None:
    await device.say_goodbye(ReasonCode.DISCONNECT_WITH_WILL_MESSAGE)


async def _break_the_protocol(_parties: Parties, device: GoodClient) -> None:
    await device.raw.send(_RESERVED_TYPE)


async def _come_twice(parties: Parties, device: GoodClient) -> None:
    await parties.device(device.paper)


_ENDS = "MQTT-3.1.2-8"
_ENDS_OR_EXPIRES = f"{_ENDS}, §3.1.3.2.2"


def _sent(
    name: str, description: str, end: End, *, clause: str = _ENDS, older: str = _ENDS, needs: tuple[Feature, ...] = ()
) -> None:
    @owed(chapter, name, description, clause, older=older, needs=needs)
    async def _(parties: Parties) -> None:
        listener, device, payload = await _left(parties)
        await end(parties, device)
        await _once(listener, payload)


_sent("1-will-cut", "loses its connection by a reset: its will is sent, once", _reset)
_sent("1-will-closed", "closes without DISCONNECT: its will is sent, once", _close)
_sent(
    "1-will-asked-for",
    "sends DISCONNECT 0x04 (with will): the will is sent, once",
    _ask_for_it,
    clause="§3.14.2.1",
    older="",
    needs=_V5,
)
_sent("1-will-protocol-error", "is disconnected for a protocol error: its will is sent, once", _break_the_protocol)
_sent(
    "1-will-taken-over",
    "connects a second time, which closes the first connection: its will is sent, once",
    _come_twice,
    clause=_ENDS_OR_EXPIRES,
)


# 2: not sent


@owed(
    chapter,
    "2-goodbye",
    "sends DISCONNECT 0x00: its will is not sent",
    "MQTT-3.14.4-3",
    older="MQTT-3.14.4-3",
    withheld=True,
)
async def _goodbye(parties: Parties) -> Seen:
    listener, device, payload = await _left(parties)
    await device.say_goodbye()
    return await not_delivered(listener, payload, "its will was sent, though it had said DISCONNECT 0x00")


@owed(
    chapter,
    "2-goodbye-returns",
    "reconnects without a will, and loses that connection: the old will is not sent",
    "MQTT-3.1.2-10",
    older="MQTT-3.1.2-10",
    withheld=True,
)
async def _without(parties: Parties) -> Seen:
    listener, device, payload = await _left(parties)
    await device.say_goodbye()
    (await parties.device(device.paper)).cut()
    return await not_delivered(listener, payload, "the will of a connection was sent that had ended with DISCONNECT")


# 3: delayed


@owed(
    chapter,
    "3-delay-returns",
    "loses its connection and reconnects within its will delay: the will is not sent",
    "MQTT-3.1.3-9",
    needs=_V5,
    withheld=True,
)
async def _delay_returns(parties: Parties) -> Seen:
    delay = await _time_to_return(parties, _DELAY)
    listener, device, payload = await _left(parties, keeps=True, delay=delay)
    await _returned_in(parties, device, delay)
    await asyncio.sleep(delay + SOON)
    return await not_delivered(listener, payload, "its will was sent, though it had come back within the will delay")


@owed(
    chapter,
    "3-delay-returns-cut",
    "loses its connection, reconnects within its will delay without a will, and loses that one: the will is not sent",
    "MQTT-3.1.3-9, MQTT-3.1.2-8",
    needs=_V5,
    withheld=True,
)
async def _delay_returns_cut(parties: Parties) -> Seen:
    delay = await _time_to_return(parties, 1)
    listener, device, payload = await _left(parties, keeps=True, delay=delay)
    (await _returned_in(parties, device, delay)).cut()
    await asyncio.sleep(delay + SOON)
    return await not_delivered(listener, payload, "the will of a connection was sent that had been resumed in time")


@owed(chapter, "3-delay-goodbye", "sends DISCONNECT 0x00, with a will delay: the will is never sent", "MQTT-3.14.4-3",
      needs=_V5, withheld=True)  # fmt: skip
async def _delay_goodbye(parties: Parties) -> Seen:
    listener, device, payload = await _left(parties, keeps=True, delay=1)
    await device.say_goodbye()
    await asyncio.sleep(1 + SOON)
    return await not_delivered(listener, payload, "its will was sent, though it had said DISCONNECT 0x00")


@owed(
    chapter,
    "3-delay-passes",
    "loses its connection and does not reconnect: the will is sent when the will delay has passed",
    "MQTT-3.1.2-8, §3.1.3.2.2",
    needs=_V5,
)
async def _delay_passes(parties: Parties) -> None:
    listener, device, payload = await _left(parties, keeps=True, delay=_DELAY)
    cut = time.monotonic()
    device.cut()
    await listener.until_came(1, _NEVER)
    waited = listener.last_came - cut
    if waited < _DELAY - _EARLY:
        raise BrokenPromise(f"its will was sent after {waited:.2f} s, with a will delay of {_DELAY} s")
    await exactly(listener, [payload], "its will")


# MQTT 5 §3.1.3.2.2: whichever comes first, the end of the delay or of the session.
def _session_ends(name: str, description: str, seconds: int) -> None:
    @owed(chapter, name, description, _ENDS_OR_EXPIRES, needs=_V5)
    async def _(parties: Parties) -> None:
        listener, device, payload = await _left(parties, keeps=True, delay=_LONG_DELAY, seconds=seconds)
        device.cut()
        await _once(listener, payload)


_session_ends(
    "3-delay-session-ends",
    "loses its connection, and its session expires before the will delay: the will is sent then",
    1,
)
_session_ends(
    "3-delay-no-session", "loses its connection, with a will delay and no session to keep: the will is sent at once", 0
)


# 4: as it was set


@owed(
    chapter,
    "4-will-as-left",
    "has a will with QoS and properties: all arrive unaltered",
    "MQTT-3.1.2-9, MQTT-3.1.3-10",
    needs=_V5,
)
async def _as_left(parties: Parties) -> None:
    paper = await parties.scene.device()
    topic, qos = parties.topic(paper, "state"), parties.best_qos
    told = Properties(
        payload_format_indicator=1,
        message_expiry_interval=_LIFE,
        content_type="text/plain",
        response_topic=parties.topic(paper, "cmd/why"),
        correlation_data=b"\x00\xff",
        user_properties=(("why", "cut"), ("why", "again")),
    )
    listener = await parties.service()
    granted = await listener.subscribe(topic, qos)
    device = await parties.device(paper, will=Will(topic, b"as it was", qos, properties=told))
    device.cut()
    await listener.until_came(1, _NEVER)
    as_told(listener.came[0], Publish(topic, b"as it was", min(qos, granted), properties=told))


@owed(
    chapter,
    "4-will-retained",
    "has a will with RETAIN: a later subscriber gets it, with RETAIN",
    "MQTT-3.1.2-15",
    older="MQTT-3.1.2-17",
)
async def _retained(parties: Parties) -> None:
    paper = await parties.scene.device()
    topic = parties.topic(paper, "state")
    listener = await parties.service()
    await listener.subscribe(topic, QoS.AT_LEAST_ONCE)
    device = await parties.device(paper, will=Will(topic, b"gone", QoS.AT_LEAST_ONCE, retain=True))
    device.cut()
    await listener.until_came(1, _NEVER)
    parties.retained(await parties.device(paper), topic)
    later = await parties.service()
    await later.subscribe(topic, QoS.AT_LEAST_ONCE)
    await later.until_came(1, "its will was not retained")
    if later.came[0].payload != b"gone" or not later.came[0].retain:
        raise BrokenPromise("what was retained came without RETAIN, or is not its will")


@owed(
    chapter,
    "4-will-not-retained",
    "has a will without RETAIN: a later subscriber gets nothing",
    "MQTT-3.1.2-14",
    older="MQTT-3.1.2-16",
)
async def _not_retained(parties: Parties) -> None:
    listener, device, payload = await _left(parties)
    device.cut()
    await _once(listener, payload)
    later = await parties.service()
    await later.subscribe(parties.topic(device, "state"), QoS.AT_LEAST_ONCE)
    await later.settled()
    if later.came:
        raise BrokenPromise("its will was retained, though it had not asked for that")
