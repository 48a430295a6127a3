"""A Shared Subscription: one subscriber to the routes, many members behind it, each message to one of them.

Theory
------
The group stands in the subscription tree like any subscriber, so that routes, caches and invalidation know nothing of
sharing. It gives each message to the next member in turn that is connected and takes messages; where nobody is
connected, to the next whose session will come back. Nothing is decided before the message is there, so a member that
leaves takes nothing with it that was not sent to it; what was sent and not acknowledged when its *session* ends goes to
another member at QoS 1 (MQTT 5 §4.8.2), and at QoS 2 to nobody else [MQTT-4.8.2-5].

Rules
-----
1. Each message goes to exactly one member [MQTT-4.8.2-4], one that may get it; a member's own subscription options
   apply.
2. No I/O, no clock.
"""

from __future__ import annotations

from typing import Any, Protocol

from broker.mqtt.message import Message
from broker.mqtt.subscription import Subscription


class Member(Protocol):
    """A session, as its share sees it."""

    @property
    def connected(self) -> bool:
        """Whether its client is connected."""

    def may_get(self, topic: bytes) -> bool:
        """Whether its client may get a message of *topic*: plugins may refuse one what another gets."""

    def has_room(self, qos: int) -> bool:
        """Whether a message at *qos* would be written at once, and all before it has been."""

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
        """Hold nobody any more."""

    def flush(self) -> None:
        """Write out the outbox."""


class ShareGroup:
    """The members of one share name and topic filter, in one trust domain."""

    __slots__ = ("_members", "_next", "_order", "_touched", "name", "outbox")

    takes_shared_frames = False
    v5 = False

    def __init__(self, name: str) -> None:
        self.name = name
        """The topic filter of its members' subscriptions, ``$share/`` and all."""
        self._members: dict[Member, Subscription] = {}
        self._order: list[Member] = []
        self._next = 0
        self._touched: set[Member] = set()
        self.outbox: list[bytes] = []  # Never used: a group always delivers individually.

    def __len__(self) -> int:
        return len(self._members)

    @property
    def members(self) -> tuple[Member, ...]:
        """Who may get the next message."""
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
        self._order.remove(member)
        return True

    def deliver(self, message: Message, subscription: Subscription, now: float) -> bool:
        """Give *message* to the member whose turn it is; return whether to hold the publisher.

        It is held when all members that are connected have fallen behind, and this one so far that its queue is half
        full.
        """
        del subscription  # The group's own says nothing: each member has its options.
        member = self._choose(message)
        if member is None:
            return False
        self._touched.add(member)
        return member.deliver(message, self._members[member], now, share=self.name)

    def deliver_again(self, message: Message, now: float) -> None:
        """Give *message*, which a member that has ended did not acknowledge, to another."""
        self.deliver(message, _ANY, now)
        self.flush()

    def deliver_reliably(self, message: Message, now: float) -> bool:
        """Never called: a group has no part in shared frames."""
        raise AssertionError(message, now)

    def hold(self, publisher: Any) -> None:
        """Hold *publisher* until a member that has fallen behind has caught up."""
        for member in self._members:
            if member.congested and member is not publisher.session:
                member.hold(publisher)
                return
        publisher.release()

    def give_up(self) -> None:
        """Hold nobody any more for the members that have fallen behind."""
        for member in self._members:
            if member.congested:
                member.give_up()

    def flush(self) -> None:
        """Write out the outboxes of the members that got something."""
        touched, self._touched = self._touched, set()
        for member in touched:
            member.flush()

    def _choose(self, message: Message) -> Member | None:
        """Return the next member in turn that takes messages; else one that is connected; else one that returns.

        Each of the two others in turn too, so that no queue fills up beside one that has room.
        """
        order = self._order
        count = len(order)
        slow: Member | None = None
        away: Member | None = None
        for step in range(count):
            index = (self._next + step) % count
            member = order[index]
            if not member.may_get(message.topic):
                continue
            if member.has_room(min(message.qos, self._members[member].qos)):
                self._next = index + 1
                return member
            if member.connected:
                slow = slow or member
            elif message.qos and self._members[member].qos and member.persistent:
                away = away or member
        chosen = slow or away
        if chosen is not None:
            self._next = order.index(chosen) + 1
        return chosen


_ANY = Subscription("#", 2)
