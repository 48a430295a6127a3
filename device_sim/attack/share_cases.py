"""Case 13 of `fleet-sim delivery`: shared subscriptions, where each message goes to one of several members.

MQTT 5 §4.8.2. The broker may choose which member gets a message, and in which order they do; but no message may be
lost, come twice, or reach a member at a QoS other than it was granted. What a member did not acknowledge when its
session ended should go to another member at QoS 1, and must not at QoS 2.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.packets import Puback, Pubrec
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import EVERYTHING, NOTHING, GoodClient, Parties
from device_sim.attack.owed import once_each, owed, said_at
from device_sim.attack.target import BrokenPromise, Impossible

_V5 = (Feature.MQTT5,)
_QOS2 = (Feature.MQTT5, Feature.QOS2)
_ONCE = QoS.AT_LEAST_ONCE
_SENT = 24
_PASSES_ON_WITHIN = 10.0
"""How many seconds to wait for a message that should go to another member."""

chapter = Chapter()


class _Share:
    """A group of services that share what one device publishes."""

    def __init__(self, parties: Parties, device: GoodClient) -> None:
        self.parties = parties
        self.device = device

    @classmethod
    async def of_a_device(cls, parties: Parties) -> _Share:
        """Return the share of a new device; raise `Impossible` if the broker declares that it supports none."""
        device = await parties.device()
        if device.told.shared_subscription_available is False:
            raise Impossible("the broker has no shared subscriptions: CONNACK says so")
        return cls(parties, device)

    @property
    def topic(self) -> str:
        return self.parties.topic(self.device, "telemetry")

    def filter(self, share: str = "ours") -> str:
        return f"$share/{share}/{self.topic}"

    async def member(
        self, qos: QoS = _ONCE, *, keeps: bool = False, answers: frozenset[type] = EVERYTHING
    ) -> GoodClient:
        """Return a service that has subscribed as a member."""
        member = await self.parties.service(keeps=keeps, answers=answers)
        await member.subscribe(self.filter(), qos)
        return member

    async def say(self, count: int = _SENT, qos: QoS = _ONCE, word: str = "said") -> list[bytes]:
        """Let the device publish *count* messages; return them."""
        payloads = [f"{word} {number:02d}".encode() for number in range(count)]
        for payload in payloads:
            await self.device.publish(self.topic, payload, qos)
        return payloads


def _all(members: Sequence[GoodClient]) -> list[bytes]:
    return [payload for member in members for payload in member.payloads]


async def _heard(members: Sequence[GoodClient], enough: Callable[[], bool], what: str) -> None:
    """Return when *enough* has reached *members*, and a moment later; raise `BrokenPromise` if it never does."""
    until = time.monotonic() + members[0].patience
    while not enough():
        for member in members:
            await member.settled()
        if time.monotonic() > until and not enough():
            raise BrokenPromise(f"{what}: not all came", never=True)
    for member in members:
        await member.settled()


async def _between(members: Sequence[GoodClient], payloads: list[bytes], what: str) -> None:
    """Return when each of *payloads* has reached one of *members*; raise `BrokenPromise` if one does not, or twice."""
    await _heard(members, lambda: set(payloads) <= set(_all(members)), what)
    once_each(_all(members), payloads, what)


@owed(
    chapter,
    "13-share-one",
    "publishes to a shared subscription of three: each message goes to one of them",
    "§4.8.2",
    needs=_V5,
)
async def _one(parties: Parties) -> None:
    share = await _Share.of_a_device(parties)
    members = [await share.member() for _ in range(3)]
    await _between(members, await share.say(), "what was shared")


@owed(
    chapter,
    "13-share-one-qos2",
    "does the same at QoS 2: each message goes to one of them, once",
    "§4.8.2",
    needs=_QOS2,
)
async def _one_qos2(parties: Parties) -> None:
    share = await _Share.of_a_device(parties)
    members = [await share.member(QoS.EXACTLY_ONCE) for _ in range(2)]
    await _between(members, await share.say(12, QoS.EXACTLY_ONCE), "what was shared")


@owed(
    chapter,
    "13-share-each-group",
    "publishes to two shared subscriptions and an ordinary one: each of the three gets all",
    "§4.8.2",
    needs=_V5,
)
async def _each_group(parties: Parties) -> None:
    share = await _Share.of_a_device(parties)
    alone, ours, theirs = [await parties.service() for _ in range(3)]
    await alone.subscribe(share.topic, _ONCE)
    await ours.subscribe(share.filter("ours"), _ONCE)
    await theirs.subscribe(share.filter("theirs"), _ONCE)
    payloads = await share.say(8)
    for who, words in ((alone, "who shares with nobody"), (ours, "one group"), (theirs, "another group")):
        await _between([who], payloads, f"what was due to {words}")


@owed(
    chapter,
    "13-share-and-own",
    "publishes to a client with an ordinary and a shared subscription: "
    "it gets all by the first, and the group gets all once more",
    "§4.8.2",
    needs=_V5,
)
async def _and_own(parties: Parties) -> None:
    share = await _Share.of_a_device(parties)
    both, other = await share.member(), await share.member()
    await both.subscribe(share.topic, _ONCE)
    payloads = await share.say(8)
    await _heard([both, other], lambda: len(_all([both, other])) >= 2 * len(payloads), "what was due twice")
    once_each(_all([both, other]), payloads * 2, "what was due twice")
    if set(both.payloads) != set(payloads):
        raise BrokenPromise("who had subscribed for itself too did not get all")


@owed(
    chapter,
    "13-share-qos",
    "publishes at its highest QoS to members with QoS 0, 1 and 2: none gets a message at a higher QoS than granted",
    "MQTT-4.8.2-3, MQTT-3.8.4-8",
    needs=_V5,
)
async def _qos(parties: Parties) -> None:
    share = await _Share.of_a_device(parties)
    granted = [qos for qos in QoS if qos <= parties.best_qos]
    members = [await share.member(qos) for qos in granted]
    payloads = await share.say(_SENT, parties.best_qos)
    # At QoS 0 one may be lost: whichever member lost it, nothing more is due.
    reliable = [member for member, qos in zip(members, granted, strict=True) if qos]
    await _heard(members, lambda: len(_all(members)) >= len(payloads) or not reliable, "what was shared")
    for member, qos in zip(members, granted, strict=True):
        other = next((each.qos for each in member.came if each.qos is not qos), None)
        if other is not None:
            raise BrokenPromise(f"a message came at QoS {other.value} to a client that was granted {qos.value}")
    once_each(_all(members), payloads, "what was shared")


@owed(
    chapter,
    "13-share-mixed",
    "publishes at QoS 0, 1 and 2 in turn to two members: each message arrives once, at its QoS",
    "MQTT-3.8.4-8, §4.8.2",
    needs=_V5,
)
async def _mixed(parties: Parties) -> None:
    share = await _Share.of_a_device(parties)
    members = [await share.member(parties.best_qos) for _ in range(2)]
    levels = [qos for qos in QoS if qos <= parties.best_qos]
    due = {f"{number} at {qos.value}".encode(): qos for number in range(6) for qos in levels}
    for payload, qos in due.items():
        await share.device.publish(share.topic, payload, qos)
    await _between(members, list(due), "what was shared")
    for each in (*members[0].came, *members[1].came):
        if each.qos is not said_at(each, due):
            raise BrokenPromise(f"a message came at QoS {each.qos.value} that was said {each.payload[2:].decode()}")


@owed(chapter, "13-share-retained", "has retained a message: a new member of a shared subscription does not get it",
      "§3.8.4, §4.8.2", needs=_V5)  # fmt: skip
async def _retained(parties: Parties) -> None:
    share = await _Share.of_a_device(parties)
    state = parties.topic(share.device, "state")
    await share.device.publish(state, b"stored", retain=True)
    parties.retained(share.device, state)
    alone = await parties.service()
    await alone.subscribe(state, _ONCE)
    await alone.until_came(1, "what was retained never came")
    for _ in range(2):  # The first creates the shared subscription, the second joins it.
        member = await parties.service()
        await member.subscribe(f"$share/ours/{state}", _ONCE)
        await member.settled()
        if member.came:
            raise BrokenPromise("a retained message came to a client that has subscribed as one of many")


@owed(
    chapter,
    "13-share-leaves",
    "publishes to two members, one of which unsubscribes: the other gets all from then on",
    "MQTT-3.10.4-2, §4.8.2",
    needs=_V5,
)
async def _leaves(parties: Parties) -> None:
    share = await _Share.of_a_device(parties)
    leaves, stays = await share.member(), await share.member()
    await _between([leaves, stays], await share.say(8, word="before"), "what was shared")
    await leaves.unsubscribe(share.filter())
    before = len(leaves.came)
    stays.came.clear()
    payloads = await share.say(8, word="after")
    await _between([stays], payloads, "what was due to a client that has stayed")
    await leaves.settled()
    if len(leaves.came) > before:
        raise BrokenPromise("a message came to a client that had unsubscribed")


@owed(
    chapter,
    "13-share-twice",
    "publishes to two members, one of which has subscribed twice: "
    "each message arrives once, and one UNSUBSCRIBE ends both",
    "§4.8.2",
    needs=_V5,
)
async def _twice(parties: Parties) -> None:
    share = await _Share.of_a_device(parties)
    twice, other = await share.member(QoS.AT_MOST_ONCE), await share.member()
    await twice.subscribe(share.filter(), _ONCE)
    await _between([twice, other], await share.say(8, word="before"), "what was shared")
    await twice.unsubscribe(share.filter())
    other.came.clear()
    await _between([other], await share.say(8, word="after"), "what was due to a client that has stayed")


# Members that leave with unacknowledged messages


async def _holding(parties: Parties, qos: QoS, *, keeps: bool) -> tuple[_Share, GoodClient, GoodClient, list[bytes]]:
    """Return a share, a member with unacknowledged messages, one that joined later, and those messages."""
    share = await _Share.of_a_device(parties)
    holder = await share.member(qos, keeps=keeps, answers=NOTHING)
    payloads = await share.say(3, qos)
    await holder.until(
        lambda: len(holder.came) == len(payloads), "what was said never came to the only one of its group"
    )
    return share, holder, await share.member(qos), payloads


@owed(
    chapter,
    "13-share-ends-qos1",
    "publishes at QoS 1 to a member whose session ends without PUBACK: another should get the message",
    "§4.8.2",
    needs=_V5,
)
async def _ends_qos1(parties: Parties) -> None:
    _, holder, other, payloads = await _holding(parties, _ONCE, keeps=False)
    holder.cut()
    try:
        await other.until_payloads(payloads, "", min(_PASSES_ON_WITHIN, other.patience))
    except BrokenPromise as error:
        if not error.never:
            raise
        lost = "what was not acknowledged when a session ended went to nobody else of the group"
        raise BrokenPromise(lost, never=True, advised=True) from error
    await other.settled()
    once_each(other.payloads, payloads, "what another had not acknowledged")


@owed(
    chapter,
    "13-share-returns-qos1",
    "publishes at QoS 1 to a member that loses its connection without PUBACK and reconnects: "
    "it gets the message again, or another does",
    "§4.8.2, MQTT-4.4.0-1",
    needs=_V5,
)
async def _returns_qos1(parties: Parties) -> None:
    _, holder, other, payloads = await _holding(parties, _ONCE, keeps=True)
    holder.cut()
    await other.settled()
    holder = await parties.returned(holder)
    await _heard([holder, other], lambda: set(payloads) <= set(_all([holder, other])), "what was not acknowledged")


@owed(
    chapter,
    "13-share-returns-qos2",
    "publishes at QoS 2 to a member that loses its connection without PUBREC and reconnects: "
    "it gets the message again, and no other does",
    "MQTT-4.8.2-4",
    needs=_QOS2,
)
async def _returns_qos2(parties: Parties) -> None:
    _, holder, other, payloads = await _holding(parties, QoS.EXACTLY_ONCE, keeps=True)
    identifiers = [each.packet_id for each in holder.came]
    holder.cut()
    await _nothing_came(other)
    holder = await parties.returned(holder)
    await _between([holder], payloads, "what was not acknowledged")
    if [each.packet_id for each in holder.came] != identifiers:
        raise BrokenPromise("what was not acknowledged came again under other packet identifiers")
    await _nothing_came(other)


@owed(
    chapter,
    "13-share-ends-qos2",
    "publishes at QoS 2 to a member whose session ends without PUBREC: no other gets the message",
    "MQTT-4.8.2-5",
    needs=_QOS2,
)
async def _ends_qos2(parties: Parties) -> None:
    _, holder, other, _ = await _holding(parties, QoS.EXACTLY_ONCE, keeps=False)
    holder.cut()
    await _nothing_came(other)


async def _nothing_came(other: GoodClient) -> None:
    await other.settled()
    if other.came:
        raise BrokenPromise("a message of QoS 2 came to a second member of the group")


@owed(
    chapter,
    "13-share-refused",
    "publishes to a member that refuses with a failure in PUBACK: no other gets the message",
    "MQTT-4.8.2-6, MQTT-4.4.0-2",
    needs=_V5,
)
async def _refused(parties: Parties) -> None:
    _, holder, other, _ = await _holding(parties, _ONCE, keeps=True)
    for each in holder.came:
        await holder.answer(Puback(each.packet_id or 0, ReasonCode.UNSPECIFIED_ERROR))
    await _discarded(parties, holder, other)


@owed(
    chapter,
    "13-share-refused-qos2",
    "publishes to a member that refuses with a failure in PUBREC: no other gets the message",
    "MQTT-4.8.2-6, MQTT-4.4.0-2",
    needs=_QOS2,
)
async def _refused_qos2(parties: Parties) -> None:
    _, holder, other, _ = await _holding(parties, QoS.EXACTLY_ONCE, keeps=True)
    for each in holder.came:
        await holder.answer(Pubrec(each.packet_id or 0, ReasonCode.UNSPECIFIED_ERROR))
    await _discarded(parties, holder, other)


async def _discarded(parties: Parties, holder: GoodClient, other: GoodClient) -> None:
    await holder.settled()
    if holder.released:
        raise BrokenPromise("PUBREL was the answer to a PUBREC with a failure")
    holder.cut()
    holder = await parties.returned(holder)
    await holder.settled()
    await other.settled()
    if holder.came or other.came:
        raise BrokenPromise("what one of a group had refused came again" + (", to another" if other.came else ""))


@owed(
    chapter,
    "13-share-away",
    "publishes to members of which one is away, and reconnects: each message goes to one of them",
    "§4.8.2, MQTT-4.5.0-1",
    needs=_V5,
)
async def _away(parties: Parties) -> None:
    share = await _Share.of_a_device(parties)
    away, here = await share.member(keeps=True), await share.member(keeps=True)
    await away.say_goodbye()
    payloads = await share.say(12)
    await here.settled()
    away = await parties.returned(away)
    await _between([away, here], payloads, "what was shared")


@owed(
    chapter,
    "13-share-all-away",
    "publishes to members that are all away, and reconnect: each message goes to one of them",
    "§4.8.2, MQTT-4.5.0-1",
    needs=_V5,
)
async def _all_away(parties: Parties) -> None:
    share = await _Share.of_a_device(parties)
    members = [await share.member(keeps=True) for _ in range(2)]
    for member in members:
        await member.say_goodbye()
    payloads = await share.say(6)
    members = [await parties.returned(member) for member in members]
    await _between(members, payloads, "what was shared")
