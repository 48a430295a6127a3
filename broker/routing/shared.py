"""A Shared Subscription: a single subscriber for the routes, with many members, each message going to one of them.

Theory
------
The group is in the subscription tree like any subscriber, so routes, caches and invalidation need not know about
sharing. It gives each message to the next member in turn that is connected and takes messages; if none is connected, to
the next whose session persists. Nothing is decided before the message arrives, so a member that leaves takes along only
what was sent to it. Members that are away, and those without room, are set aside, so that a thousand of them cost a
message nothing; the latter until they may have room (`Lagging`). If its *session* ends, what it has not acknowledged
goes to another member at QoS 1 (MQTT 5 §4.8.2, `broker.engine.handover`), and at QoS 2 to no other [MQTT-4.8.2-5].

Rules
-----
1. Each message goes to exactly one member that may receive it [MQTT-4.8.2-4]; that member's own subscription options
   apply.
2. No I/O, no clock.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Final, Protocol

from broker.mqtt.message import Message
from broker.mqtt.subscription import Subscription

_LOOKS: Final = 16
"""Members without room that are asked about a message: at a lower QoS they may have some."""


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

    def hold(self, publisher: Any, now: float) -> bool:
        """Remember that *publisher* is not read until the queue is short again; False: it is."""

    def give_up(self) -> None:
        """Hold no publishers any more."""

    def flush(self) -> None:
        """Write out the outbox."""


class Lagging:
    """The connected members without room, of all shares, and which shares have set them aside."""

    __slots__ = ("_shares",)

    def __init__(self) -> None:
        self._shares: dict[Member, list[ShareGroup]] = {}

    def __len__(self) -> int:
        return len(self._shares)

    def add(self, member: Member, share: ShareGroup) -> None:
        """Take note that *share* has set *member* aside."""
        self._shares.setdefault(member, []).append(share)

    def remove(self, member: Member, share: ShareGroup) -> None:
        """Take note that *member* is no longer set aside by *share*."""
        shares = self._shares[member]
        shares.remove(share)
        if not shares:
            del self._shares[member]

    def took(self, member: Member) -> None:
        """Take note that *member* has acknowledged or read something: it may have room."""
        for share in tuple(self._shares.get(member, ())):
            share.took(member)


class ShareGroup:
    """The members of one share name and topic filter, in one trust domain and role."""

    __slots__ = (
        "_away",
        "_full",
        "_lagging",
        "_members",
        "_next",
        "_order",
        "_touched",
        "_unreachable",
        "name",
        "outbox",
    )

    takes_shared_frames = False
    v5 = False

    def __init__(self, name: str, lagging: Lagging) -> None:
        self.name = name
        """The full topic filter of its members' subscriptions, including ``$share/``."""
        self._lagging = lagging
        self._members: dict[Member, Subscription] = {}
        self._order: list[Member] = []
        """Those that had room when they were asked last, connected or not."""
        self._full: dict[Member, None] = {}
        """Those that had none, in turn; those that `_lagging` has."""
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
        elif member in self._full:
            self.took(member)  # At a lower QoS it may have room.
        return existed

    def leave(self, member: Member) -> bool:
        """Remove *member*; return whether it was one."""
        if self._members.pop(member, None) is None:
            return False
        if member in self._away:
            del self._away[member]
        elif member in self._unreachable:
            self._unreachable.remove(member)
        elif member in self._full:
            self._fill_no_more(member)
        else:
            self._order.remove(member)
        return True

    def returned(self, member: Member) -> None:
        """Take note that the client of *member* is connected again."""
        if member in self._away or member in self._unreachable:
            self._away.pop(member, None)
            self._unreachable.discard(member)
            self._order.append(member)
        elif member in self._full:
            self._fill_no_more(member)
            self._order.append(member)

    def took(self, member: Member) -> None:
        """Take note that *member*, which is set aside, has acknowledged or read something."""
        if member.has_room(self._members[member].qos):
            self._fill_no_more(member)
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
        """Give *message*, which a member whose session ended has left, to another; flushing is the caller's."""
        self.deliver(message, _ANY, now)

    def deliver_reliably(self, message: Message, now: float) -> bool:
        """Never called: a group does not take shared frames."""
        raise AssertionError(message, now)

    def hold(self, publisher: Any, now: float) -> bool:
        """Hold *publisher* until a member that has fallen behind has caught up; False: there is none to wait for."""
        others = (each for each in self._members if each is not publisher.session)
        return any(each.congested and each.hold(publisher, now) for each in others)

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
        looked = 0
        while looked < len(order):
            index = (self._next + looked) % len(order)
            member = order[index]
            if not member.may_get(message.topic):
                looked += 1
            elif member.has_room(min(message.qos, self._members[member].qos)):
                self._next = index + 1
                return member
            else:
                self._set_aside(index)
        slow = self._choose_full(message)
        return self._choose_away(message) if slow is None and message.qos else slow

    def _choose_full(self, message: Message) -> Member | None:
        """Return one of the next few that have room for *message*, at a lower QoS than usual; else the next in turn."""
        have_left = any(not each.connected for each in islice(self._full, _LOOKS))
        if have_left:  # At most once for each time that one leaves.
            for member in [each for each in self._full if not each.connected]:
                self._fill_no_more(member)
                self._put_away(member)
        takers = (each for each in self._full if each.connected and each.may_get(message.topic))
        looked = list(islice(takers, _LOOKS))
        chosen = next((each for each in looked if each.has_room(min(message.qos, self._members[each].qos))), None)
        if chosen is None and looked:
            chosen = looked[0]
        if chosen is not None:
            del self._full[chosen]  # It is the last one now.
            self._full[chosen] = None
        return chosen

    def _choose_away(self, message: Message) -> Member | None:
        for member in self._away:
            if member.may_get(message.topic):
                del self._away[member]  # It is the last one now.
                self._away[member] = None
                return member
        return None

    def _set_aside(self, index: int) -> None:
        """Take the member at *index*, which is away or has no room, out of the order: once for each time that it is."""
        member = self._order.pop(index)
        self._next -= index < self._next
        if member.connected:
            self._full[member] = None
            self._lagging.add(member, self)
        else:
            self._put_away(member)

    def _put_away(self, member: Member) -> None:
        if self._members[member].qos and member.persistent:
            self._away[member] = None
        else:
            self._unreachable.add(member)

    def _fill_no_more(self, member: Member) -> None:
        """Take *member* out of those without room."""
        del self._full[member]
        self._lagging.remove(member, self)


_ANY = Subscription("#", 2)
