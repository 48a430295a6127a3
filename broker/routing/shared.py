"""A Shared Subscription: a single subscriber for the routes, with many members, each message going to one of them.

Theory
------
The group is in the subscription tree like any subscriber, so routes, caches and invalidation need not know about
sharing. It gives each message to the next member in turn that is connected and takes messages; if none is connected, to
the next whose session persists. Nothing is decided before the message arrives, so a member that leaves takes along only
what was sent to it. Members that are away are set aside, so that a thousand of them cost a message nothing. If its
*session* ends, what it has not acknowledged goes to another member at QoS 1 (MQTT 5 §4.8.2, `broker.engine.estate`),
and at QoS 2 to no other [MQTT-4.8.2-5].

Rules
-----
1. Each message goes to exactly one member that may receive it [MQTT-4.8.2-4]; that member's own subscription options
   apply.
2. No I/O, no clock.
"""

from __future__ import annotations

from typing import Any, Protocol

from broker.mqtt.message import Message
from broker.mqtt.subscription import Subscription


class Member(Protocol):
    """A session, as seen by its share."""

    @property
    def connected(self) -> bool:
        """Whether its client is connected."""

    def may_get(self, topic: bytes) -> bool:
        """Whether its client may receive a message of *topic*: plugins may refuse it to one member alone."""

    def has_room(self, qos: int) -> bool:
        """Whether a message at *qos* would be written at once, and nothing before it still waits."""

    @property
    def persistent(self) -> bool:
        """Whether it outlives its connection."""

    @property
    def congested(self) -> bool:
        """Whether publishers should be held for it."""

    def deliver(self, message: Message, subscription: Subscription, now: float, *, share: str = "") -> bool:
        """Send or queue *message*; return whether to hold the publisher."""

    def hold(self, publisher: Any) -> None:
        """Remember that *publisher* is not read until the queue is short again."""

    def give_up(self) -> None:
        """Hold no publishers any more."""

    def flush(self) -> None:
        """Write out the outbox."""


class ShareGroup:
    """The members of one share name and topic filter, in one trust domain."""

    __slots__ = ("_away", "_members", "_next", "_order", "_touched", "_unreachable", "name", "outbox")

    takes_shared_frames = False
    v5 = False

    def __init__(self, name: str) -> None:
        self.name = name
        """The full topic filter of its members' subscriptions, including ``$share/``."""
        self._members: dict[Member, Subscription] = {}
        self._order: list[Member] = []
        """Those that are connected, and those that have left since the last message."""
        self._away: dict[Member, None] = {}
        """Those that were found to be away, for whom messages may be queued, in turn."""
        self._unreachable: set[Member] = set()
        """Those that are away, for whom nothing may be queued."""
        self._next = 0
        self._touched: set[Member] = set()
        self.outbox: list[bytes] = []  # Never used: a group always delivers individually.

    def __len__(self) -> int:
        return len(self._members)

    @property
    def members(self) -> tuple[Member, ...]:
        """The members that may get the next message."""
        return tuple(self._members)

    def join(self, member: Member, subscription: Subscription) -> bool:
        """Add *member*, or change its options; return whether it was a member before."""
        existed = member in self._members
        self._members[member] = subscription
        if not existed:
            self._order.append(member)
        return existed

    def leave(self, member: Member) -> bool:
        """Remove *member*; return whether it was one."""
        if self._members.pop(member, None) is None:
            return False
        if member in self._away:
            del self._away[member]
        elif member in self._unreachable:
            self._unreachable.remove(member)
        else:
            self._order.remove(member)
        return True

    def returned(self, member: Member) -> None:
        """Take note that the client of *member* is connected again."""
        if member in self._away or member in self._unreachable:
            self._away.pop(member, None)
            self._unreachable.discard(member)
            self._order.append(member)

    def deliver(self, message: Message, subscription: Subscription, now: float) -> bool:
        """Give *message* to the member whose turn it is; return whether to hold the publisher.

        It is held when all connected members have fallen behind, and this one so far that its queue is half full.
        """
        del subscription  # The group's own has no meaning: each member has its options.
        member = self._choose(message)
        if member is None:
            return False
        self._touched.add(member)
        return member.deliver(message, self._members[member], now, share=self.name)

    def deliver_again(self, message: Message, now: float) -> None:
        """Give *message*, which a member whose session ended did not acknowledge, to another."""
        self.deliver(message, _ANY, now)
        self.flush()

    def deliver_reliably(self, message: Message, now: float) -> bool:
        """Never called: a group does not take shared frames."""
        raise AssertionError(message, now)

    def hold(self, publisher: Any) -> None:
        """Hold *publisher* until a member that has fallen behind has caught up."""
        for member in self._members:
            if member.congested and member is not publisher.session:
                member.hold(publisher)
                return
        publisher.release()

    def give_up(self) -> None:
        """Hold no publishers any more for the members that have fallen behind."""
        for member in self._members:
            if member.congested:
                member.give_up()

    def flush(self) -> None:
        """Write out the outboxes of the members that got something."""
        touched, self._touched = self._touched, set()
        for member in touched:
            member.flush()

    def _choose(self, message: Message) -> Member | None:
        """Return the next member in turn that takes messages; else one that is connected; else one that may return.

        The latter two are also chosen in turn, so that no queue fills up beside one with room.
        """
        order = self._order
        count = len(order)
        slow: Member | None = None
        for step in range(count):
            index = (self._next + step) % count
            member = order[index]
            if not member.may_get(message.topic):
                continue
            if member.has_room(min(message.qos, self._members[member].qos)):
                self._next = index + 1
                return member
            if not member.connected:
                self._set_aside()
                return self._choose(message)
            slow = slow or member
        if slow is not None:
            self._next = order.index(slow) + 1
            return slow
        return self._choose_away(message) if message.qos else None

    def _choose_away(self, message: Message) -> Member | None:
        for member in self._away:
            if member.may_get(message.topic):
                del self._away[member]  # It is the last one now.
                self._away[member] = None
                return member
        return None

    def _set_aside(self) -> None:
        """Take the members that are away out of the order: at most once for each time that one leaves."""
        order = self._order
        self._next = sum(member.connected for member in order[: self._next])
        self._order = [member for member in order if member.connected]
        for member in order:
            if not member.connected:
                if self._members[member].qos and member.persistent:
                    self._away[member] = None
                else:
                    self._unreachable.add(member)


_ANY = Subscription("#", 2)
