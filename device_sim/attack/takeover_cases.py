"""Case 18 of `fleet-sim delivery`: a client that connects again takes over its own session with all its contents.

MQTT 5 §3.1.4, §3.1.3.2.2; 3.1.1 §3.1.4. The older connection is closed; nothing that was in flight on it is lost, and
completed deliveries do not come again.
"""

from __future__ import annotations

import asyncio
from typing import Any

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.connect import Will
from broker.mqtt.packets import Pubcomp, Pubrec
from broker.mqtt.properties import Properties
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import NOTHING, GoodClient, Parties
from device_sim.attack.owed import exactly, not_delivered, owed
from device_sim.attack.scene import SOON
from device_sim.attack.target import BrokenPromise
from device_sim.attack.verdict import OPEN, Seen

_V5 = (Feature.MQTT5,)
_QOS2 = (Feature.QOS2,)
_ONCE = QoS.AT_LEAST_ONCE
_DELAY = 2
_PROMPTLY = 8.0
"""Seconds that a due will may take, where sending it is only advised."""
_TAKEN_OVER = f"DISCONNECT 0x{ReasonCode.SESSION_TAKEN_OVER:02x}"

chapter = Chapter()


async def _ended(first: GoodClient) -> Seen:
    """Return how *first* was ended; raise `BrokenPromise` if it was not."""
    seen = await first.raw.end(first.patience)
    if seen.code == OPEN:
        raise BrokenPromise("its first connection was not closed", never=True)
    return seen


@owed(chapter, "18-taken-over", "connects while it is connected: the first connection is closed, with the reason",
      "MQTT-3.1.4-3", older="MQTT-3.1.4-2")  # fmt: skip
async def _told(parties: Parties) -> None:
    first = await parties.device()
    second = await parties.device(first.paper)
    seen = await _ended(first)
    await second.pinged()
    if parties.is_v5 and seen.code != _TAKEN_OVER:
        raise BrokenPromise(f"its first connection was closed, and told {seen.text}, not {_TAKEN_OVER}", advised=True)


async def _holding(parties: Parties, qos: QoS, count: int = 3, **fields: Any) -> tuple[GoodClient, list[bytes]]:
    """Return a device that has received commands and acknowledged none, and those commands."""
    device = await parties.device(keeps=True, answers=NOTHING, **fields)
    await device.subscribe(parties.topic(device, "cmd/#"), qos)
    payloads = [f"{number}".encode() for number in range(count)]
    await _command(parties, device, payloads, qos)
    due = min(count, fields.get("receive_maximum", count))
    await device.until_came(due, "its commands never came")
    return device, payloads


async def _command(parties: Parties, device: GoodClient, payloads: list[bytes], qos: QoS) -> None:
    sender = await parties.service("sender")
    for payload in payloads:
        await sender.publish(parties.topic(device, "cmd/step"), payload, qos)


async def _all_again(parties: Parties, qos: QoS) -> None:
    first, payloads = await _holding(parties, qos)
    identifiers = {each.payload: each.packet_id for each in first.came}
    second = await parties.returned(first)
    await _ended(first)
    await exactly(second, payloads, "what was not acknowledged")
    for each in second.came:
        if not each.dup or each.packet_id != identifiers[each.payload]:
            raise BrokenPromise(
                f"sent again under packet identifier {each.packet_id} with DUP {int(each.dup)}; the first time it was "
                f"{identifiers[each.payload]}, and DUP has to be 1"
            )
    await _command(parties, second, [b"new"], qos)
    await exactly(
        second, [*payloads, b"new"], "what came then"
    )  # By one subscription, not by that of both connections.


@owed(
    chapter,
    "18-taken-over-qos1",
    "connects while QoS 1 messages are unacknowledged: they come again, once, with DUP",
    "MQTT-4.4.0-1, MQTT-3.1.2-5",
    older="MQTT-4.4.0-1",
)
async def _qos1(parties: Parties) -> None:
    await _all_again(parties, _ONCE)


@owed(
    chapter,
    "18-taken-over-qos2",
    "connects while QoS 2 messages are unacknowledged: they come again, once, with DUP",
    "MQTT-4.4.0-1, MQTT-3.1.2-5",
    older="MQTT-4.4.0-1",
    needs=_QOS2,
)
async def _qos2(parties: Parties) -> None:
    await _all_again(parties, QoS.EXACTLY_ONCE)


@owed(
    chapter,
    "18-taken-over-released",
    "connects while a PUBREL is unanswered: PUBREL comes again, the message does not",
    "MQTT-4.4.0-1, MQTT-4.3.3-6",
    older="MQTT-4.4.0-1",
    needs=_QOS2,
)
async def _released(parties: Parties) -> None:
    first, _ = await _holding(parties, QoS.EXACTLY_ONCE, count=1)
    packet_id = first.came[0].packet_id or 0
    await first.answer(Pubrec(packet_id))
    await first.until(lambda: bool(first.released), "no PUBREL came for what was received")
    second = await parties.returned(first, answers=NOTHING)
    await second.until(lambda: bool(second.released or second.came), "no PUBREL came again")
    await second.settled()
    if second.came or second.released != [packet_id]:
        raise BrokenPromise(f"PUBREL for {packet_id} was due: the message came again, or PUBREL for {second.released}")
    await second.answer(Pubcomp(packet_id))
    await second.pinged()


@owed(
    chapter,
    "18-taken-over-queued",
    "has a Receive Maximum of one, and connects while others are queued: all come, in order",
    "MQTT-3.1.2-5, MQTT-4.6.0-5",
    needs=_V5,
)
async def _queued(parties: Parties) -> None:
    first, payloads = await _holding(parties, _ONCE, count=6, receive_maximum=1)
    second = await parties.returned(first, receive_maximum=1)
    await exactly(second, payloads, "what was queued for it")


@owed(
    chapter,
    "18-taken-over-clean",
    "connects with a clean start while messages are unacknowledged: they do not come",
    "MQTT-3.1.2-4, MQTT-3.2.2-2",
    older="MQTT-3.1.2-6, MQTT-3.2.2-1",
)
async def _clean(parties: Parties) -> None:
    first, _ = await _holding(parties, _ONCE)
    second = await parties.device(first.paper)
    await second.settled()
    if second.session_present or second.came:
        raise BrokenPromise("it asked for a clean start, and got its old session")
    await _command(parties, second, [b"unheard"], _ONCE)
    await exactly(second, [], "who has not subscribed since its clean start")


# The will


async def _with_will(parties: Parties, delay: int | None) -> tuple[GoodClient, GoodClient, bytes]:
    """Return a listener, a device with a will and this will delay, and that will's payload."""
    await parties.scene.watcher()  # It receives what arrives after the case is over.
    paper = await parties.scene.device()
    topic, payload = parties.topic(paper, "state"), f"will of {paper.name}".encode()
    listener = await parties.service()
    await listener.subscribe(topic, _ONCE)
    will = Will(topic, payload, _ONCE, properties=Properties(will_delay_interval=delay))
    device = await parties.device(paper, will=will, keeps=True)
    await device.subscribe(parties.topic(device, "cmd/#"), _ONCE)
    return listener, device, payload


@owed(
    chapter,
    "18-taken-over-will-at-once",
    "has no will delay, and connects to its session while it is connected: the will is sent, once",
    "MQTT-3.1.2-8, §3.1.4",
    older="MQTT-3.1.2-8",
)
async def _will_at_once(parties: Parties) -> None:
    listener, first, payload = await _with_will(parties, None)
    await parties.returned(first)
    await listener.until_came(1, "its will was never sent")
    await exactly(listener, [payload], "its will")


@owed(
    chapter,
    "18-taken-over-will",
    "has a will delay, and connects to its session while it is connected: the will is not sent",
    "MQTT-3.1.3-9, §3.1.3.2.2",
    needs=_V5,
    withheld=True,
)
async def _will(parties: Parties) -> Seen:
    listener, first, payload = await _with_will(parties, _DELAY)
    await parties.returned(first)
    await asyncio.sleep(_DELAY + SOON)
    return await not_delivered(listener, payload, "its will was sent, though it had come for its session at once")


@owed(
    chapter,
    "18-taken-over-will-clean",
    "has a will delay, and connects with a clean start while it is connected: "
    "its session ends, and the will should be sent, once",
    "§3.1.3.2.2",
    needs=_V5,
)
async def _will_clean(parties: Parties) -> None:
    listener, first, payload = await _with_will(parties, _DELAY)
    await parties.device(first.paper)
    try:
        await listener.until_came(1, "", min(_DELAY + _PROMPTLY, listener.patience))
    except BrokenPromise as error:
        if not error.never:
            raise
        # [MQTT-3.1.2-8] lets any new connection of the client identifier delete a pending will; the comment in
        # §3.1.3.2.2 says that one with Clean Start does not, because the session ends.
        raise BrokenPromise("its will was never sent", never=True, advised=True) from error
    await exactly(listener, [payload], "its will")
