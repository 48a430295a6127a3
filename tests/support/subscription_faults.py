"""Faults of a broker in subscriptions: shared ones, identifiers, options, filters, and what UNSUBSCRIBE ends.

Each is a `tests.support.delivery_faults.Changing` in front of a real broker. Handles: one fault at a time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from broker.mqtt.codes import QoS, ReasonCode
from broker.mqtt.packets import (
    Connack,
    Packet,
    Publish,
    Suback,
    Subscribe,
    SubscriptionRequest,
    Unsuback,
    Unsubscribe,
)
from broker.mqtt.topics import SharedSubscription, matches
from tests.support.delivery_faults import Changing
from tests.support.one_fault import Passage

_OURS = 60_000
"""A packet identifier that no party of a case reaches."""


def identified(packet: Publish, *identifiers: int) -> Publish:
    return replace(packet, properties=replace(packet.properties, subscription_identifiers=identifiers))


class ChangesFilters(Changing):
    """It changes a subscription into another one."""

    def __init__(self, changed: Callable[[str], str]) -> None:
        super().__init__()
        self.changed = changed

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Subscribe):
            requests = tuple(replace(each, filter=self.changed(each.filter)) for each in packet.requests)
            return [replace(packet, requests=requests)]
        if isinstance(packet, Unsubscribe):
            return [replace(packet, filters=tuple(map(self.changed, packet.filters)))]
        return [packet]


def for_everybody(topic_filter: str) -> str:
    """Return what a shared filter is to a broker without shared subscriptions: each member gets all."""
    shared = SharedSubscription.parse(topic_filter)
    return topic_filter if shared is None else shared.topic_filter


def of_one_group(topic_filter: str) -> str:
    """Return the filter in the only existing group."""
    shared = SharedSubscription.parse(topic_filter)
    return topic_filter if shared is None else f"$share/all/{shared.topic_filter}"


class ChangesTopics(Changing):
    """It changes a topic into another one."""

    def __init__(self, changed: Callable[[str], str]) -> None:
        super().__init__()
        self.changed = changed

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [replace(packet, topic=self.changed(packet.topic))] if isinstance(packet, Publish) else [packet]


class Loses(Changing):
    """It does not deliver some messages."""

    def __init__(self, lost: Callable[[Passage, Publish], bool]) -> None:
        super().__init__()
        self.lost = lost

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        return [] if isinstance(packet, Publish) and self.lost(passage, packet) else [packet]


def every_other(passage: Passage, packet: Publish) -> bool:
    del packet
    passage.memory["seen"] = passage.memory.get("seen", 0) + 1
    return bool(passage.memory["seen"] % 2 == 0)


def shares(passage: Passage) -> bool:
    return any(SharedSubscription.parse(each) for each in passage.memory.get("filters", []))


class ChangesMessages(Changing):
    """It alters messages on delivery."""

    def __init__(self, changed: Callable[[Passage, Publish], Publish]) -> None:
        super().__init__()
        self.changed = changed

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        return [self.changed(passage, packet)] if isinstance(packet, Publish) else [packet]


class GrantsOtherwise(Changing):
    """It subscribes everybody at one QoS, but reports what was requested."""

    def __init__(self, qos: QoS) -> None:
        super().__init__()
        self.qos = qos

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Subscribe):
            passage.memory[f"asked {packet.packet_id}"] = tuple(ReasonCode(int(each.qos)) for each in packet.requests)
            return [replace(packet, requests=tuple(replace(each, qos=self.qos) for each in packet.requests))]
        return [packet]

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Suback) and (asked := passage.memory.get(f"asked {packet.packet_id}")):
            return [replace(packet, reason_codes=asked)]
        return [packet]


class AnswersInReverse(Changing):
    """The codes in its SUBACK are in a different order than the filters."""

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [replace(packet, reason_codes=packet.reason_codes[::-1])] if isinstance(packet, Suback) else [packet]


class NeverUnsubscribes(Changing):
    """It answers UNSUBSCRIBE, but keeps delivering."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Unsubscribe):
            passage.tell_device(Unsuback(packet.packet_id, tuple(ReasonCode.SUCCESS for _ in packet.filters)))
            return []
        return [packet]


class UnsubscribesFromAll(Changing):
    """UNSUBSCRIBE ends all of a client's subscriptions."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Unsubscribe):
            return [replace(packet, filters=tuple(dict.fromkeys((*packet.filters, *passage.memory["filters"]))))]
        return [packet]


class CountsSubscriptions(NeverUnsubscribes):
    """A client that subscribed twice must unsubscribe twice."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        counted: Counter[str] = passage.memory.setdefault("counted", Counter())
        if isinstance(packet, Subscribe):
            counted.update(each.filter for each in packet.requests)
        if isinstance(packet, Unsubscribe):
            counted.subtract(packet.filters)
            if any(counted[each] > 0 for each in packet.filters):
                return super().sent(passage, packet)
        return [packet]


class KeepsFirst(Changing):
    """A second subscription to the same filter changes nothing."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Subscribe) and passage.memory["filters"].count(packet.requests[0].filter) > 1:
            passage.tell_device(Suback(packet.packet_id, tuple(ReasonCode(int(each.qos)) for each in packet.requests)))
            return []
        return [packet]


class UnsubscribesToReplace(Changing):
    """It replaces a subscription by ending it and creating another a little later."""

    async def from_device(self, passage: Passage, packet: Packet) -> list[Packet]:
        again = isinstance(packet, Subscribe) and packet.requests[0].filter in passage.memory.get("filters", [])
        if isinstance(packet, Subscribe) and again:
            passage.tell_broker(Unsubscribe(_OURS, (packet.requests[0].filter,)))
            await asyncio.sleep(0.05)
        return await super().from_device(passage, packet)

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        return [] if isinstance(packet, Unsuback) and packet.packet_id == _OURS else [packet]


class ForgetsOptions(Changing):
    """It forgets subscription options when a client resumes its session.

    Behind this proxy the client is only admitted once that is done: otherwise a message could come before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, set[str]] = {}

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Subscribe):
            self.known.setdefault(passage.identity.name, set()).update(each.filter for each in packet.requests)
        return [packet]

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        filters = self.known.get(passage.identity.name, set())
        if isinstance(packet, Connack) and packet.session_present and filters:
            requests = tuple(SubscriptionRequest(each, QoS.AT_LEAST_ONCE) for each in filters)
            passage.tell_broker(Unsubscribe(_OURS, tuple(filters)))  # mosquitto keeps the options of a filter it knows.
            passage.tell_broker(Subscribe(_OURS, requests))
            passage.memory["connack"] = packet
            return []
        if isinstance(packet, Suback | Unsuback) and packet.packet_id == _OURS:
            return [passage.memory["connack"]] if isinstance(packet, Suback) else []
        return [packet]


class NoOwnBesideAShare(Changing):
    """A member of a share gets nothing by its own subscription to the same filter."""

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        if (
            isinstance(packet, Subscribe)
            and shares(passage)
            and not SharedSubscription.parse(packet.requests[0].filter)
        ):
            passage.tell_device(Suback(packet.packet_id, (ReasonCode.GRANTED_QOS_1,)))
            return []
        return [packet]


class PassesOn(Changing):
    """What one member of a group was sent is also sent to each later member, whatever became of it."""

    def __init__(self) -> None:
        super().__init__()
        self.sent_to: list[tuple[str, Publish]] = []

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if isinstance(packet, Publish) and packet.qos and shares(passage):
            self.sent_to.append((passage.identity.name, packet))
        if not isinstance(packet, Suback):
            return [packet]
        shared = [each for each in map(SharedSubscription.parse, passage.memory["filters"]) if each]
        return [
            packet,
            *(
                replace(each, qos=QoS.AT_MOST_ONCE, packet_id=None)
                for name, each in self.sent_to
                if name != passage.identity.name and any(matches(one.topic_filter, each.topic) for one in shared)
            ),
        ]


class OneIdentifierForAll(Changing):
    """It keeps one subscription identifier per filter, whoever subscribed."""

    def __init__(self) -> None:
        super().__init__()
        self.last: dict[str, tuple[int, ...]] = {}

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Subscribe):
            self.last[for_everybody(packet.requests[0].filter)] = packet.properties.subscription_identifiers
        return [packet]

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Publish) and packet.topic in self.last:
            return [identified(packet, *self.last[packet.topic])]
        return [packet]


class PassesIdentifiersOn(Changing):
    """It accepts a publisher's subscription identifier, and passes it on."""

    def __init__(self) -> None:
        super().__init__()
        self.sent_with: dict[str, tuple[int, ...]] = {}

    def sent(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Publish) and packet.properties.subscription_identifiers:
            self.sent_with[packet.topic] = packet.properties.subscription_identifiers
            return [identified(packet)]
        return [packet]

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        del passage
        if isinstance(packet, Publish) and packet.topic in self.sent_with:
            return [identified(packet, *packet.properties.subscription_identifiers, *self.sent_with[packet.topic])]
        return [packet]


class OneCopy(Changing):
    """Of the copies of a message that several subscriptions match, it sends only the first."""

    def came(self, passage: Passage, packet: Packet) -> list[Packet]:
        if not isinstance(packet, Publish):
            return [packet]
        seen: set[Any] = passage.memory.setdefault("copies", set())
        first = packet.payload not in seen
        seen.add(packet.payload)
        return [packet] if first else []
