"""Topic name to route: a tree for truth, a dict for speed.

Theory
------
A `Route` is everything the data path needs to know about one topic name: the ``append`` of each outbox that gets a
QoS 0 message unchanged, by protocol version; who gets a QoS 1 message reliably; and the few that need a frame of their
own. Publishing to a warm topic is then one dict look-up and a loop of appends.

A fleet publishes to many topics that few subscribers read, so topics that match the same filters share one Route: the
second device's first message finds it made, and a turn that carries a thousand devices' messages flushes it once. It is
found by the nodes of the tree that stand for those filters: they are few, whatever number of subscribers each of them
has (decision 0199).

A route changes only when a subscription that matches it does. Whether a subscriber is connected is not part of it: its
outbox lives as long as its session. When a filter is added or removed, the cached names that it matches are found by
their rarest word (`broker.routing.cached`) and forgotten; a device that subscribes to its own topics touches no route
of anybody else. Where others have the same filter already, its node knows those names (`broker.routing.tree`).

Hot: `Routes.__missing__` is cold, a hit is a C look-up. Slow twin: `Route.recipients` delivered one by one.

Invariants
----------
1. A Route is immutable, its count of topics apart; a change of subscriptions replaces it, never edits it. It says
   nothing about its topic.
2. ``routes[topic]`` always equals what the tree answers (property-tested, with and without the cache).
3. Never more than *limit* routes are kept, and never much more memory than so many with usual names take, nor for names
   at the nodes of wildcards, nor for subscribers: clients choose the names (decision 0184), and how many of them
   subscribe to what (decision 0199). A name longer than `LONGEST_CACHED` bytes is matched each time.
4. To search for stale routes never costs more than a few times what it would to make all routes anew: then the cache
   starts anew instead. So a publication pays for one match and some searches, and a subscription for nothing that no
   publication has paid for, whatever filters clients choose (decision 0095). What either costs is added to `Work`.
5. The route of a topic whose messages are costly, because many subscribe to it and get packets of their own, or very
   many do, is in `many` and not in the dict itself: the data path does not find it there, and has
   `broker.connection.authorization` add up what is done, so that a read full of them is cut, and the very many are
   written to by and by (`broker.sockets.rounds`).
6. One change takes few names out of their files, however many routes it makes stale; the others go with later ones
   (decision 0172). A name that is filed and has no route is found in vain.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from broker.mqtt.codes import QoS
from broker.mqtt.errors import MalformedPacket
from broker.mqtt.message import Message
from broker.mqtt.subscription import Subscription
from broker.mqtt.topics import SharedSubscription, check_topic_name
from broker.routing.cached import CachedNames
from broker.routing.shared import Member, ShareGroup
from broker.routing.tree import Node, SubscriptionTree
from broker.sockets.rounds import VERY_MANY
from broker.sockets.work import Work


class Subscriber(Protocol):
    """What a route leads to: a session."""

    outbox: list[bytes]

    @property
    def v5(self) -> bool:
        """Whether it speaks MQTT 5."""

    @property
    def takes_shared_frames(self) -> bool:
        """Whether it gets the very bytes that others get."""

    def deliver(self, message: Message, subscription: Subscription, now: float) -> bool:
        """Send or queue *message* as *subscription* asks; return whether to hold the publisher."""

    def deliver_reliably(self, message: Message, now: float) -> bool:
        """Send or queue *message* at QoS 1, with no flag of its own; return whether to hold the publisher."""

    def hold(self, publisher: Any) -> None:
        """Remember that *publisher* is not read until the queue is short again."""

    def give_up(self) -> None:
        """Hold nobody any more."""

    def flush(self) -> None:
        """Write out the outbox."""


Append = Callable[[bytes], None]

_COSTLY = 32
"""Deliveries of one message that are each a packet, beyond which they are counted: 2 µs each, and a read may hold
hundreds of messages."""

_HELD = 4
_HELD_ANYWAY = 100_000
"""Subscribers that all routes lead to, for each route that may be kept, and anyway: 250 bytes each."""

_REMEMBERED_BYTES = 640
"""Bytes of names that the nodes of wildcards remember, for each route that may be kept: some six names of 40 bytes."""

_REMEMBERED_PLACE = 64
"""What such a name takes beside its own bytes."""

_CACHED_BYTES = 1_280
"""Bytes of cached names with their words, for each route that may be kept: a usual one takes 470 to 800."""

LONGEST_CACHED = 512
"""Bytes of a topic name that is remembered: a client may choose 65,535 of them, and another name each time."""

_STEPS_A_ROUTE = 64
"""Steps of a search that cost about half as much as to match one topic name."""

_NODES_A_PACKET = 64
_MATCHES_A_PACKET = 32
_NAMES_A_PACKET = 256
_CHARACTERS_A_PACKET = 8192
"""How many nodes of the tree, subscriptions of a route, names of a search, characters of a topic name cost as much as a
packet (`broker.sockets.work`)."""

_AT_ONCE = 64
"""Names that a change of subscriptions takes out of their files; what is left goes by the next, or `_AT_A_TIME`."""
_AT_A_TIME = 2
"""What each new route lets go of: twice as much as it adds."""

_MANY = 4096
"""Stale names that are forgotten one by one, though they be most of the cache."""

_Key = tuple[int, ...]

_NOBODY: Mapping[Subscriber, Subscription | None] = MappingProxyType({})


class Route:
    """Who gets the messages of one topic name."""

    __slots__ = (
        "appends_v4",
        "appends_v5",
        "best_effort_v4",
        "best_effort_v5",
        "few",
        "individual",
        "is_costly",
        "is_wide",
        "key",
        "nodes",
        "own",
        "recipients",
        "reliable",
        "subscribers",
        "topics",
    )

    def __init__(self, matches: list[tuple[Subscriber, Subscription]]) -> None:
        self.key: _Key | None = None
        """What it is found by while topics share it."""
        self.nodes: list[Node[Subscriber]] = []
        """Where its subscriptions are filed: kept, so that nothing else can have their identity while it is found."""
        self.topics = 0
        """How many cached topics it serves."""
        merged = _merge(matches)
        self.recipients = tuple(merged.items())
        """Every subscriber once, overlapping subscriptions merged."""
        shy = {subscriber for subscriber, subscription in matches if subscription.no_local}
        self.own: Mapping[Subscriber, Subscription | None] = _NOBODY
        """Of those that asked for No Local: what their own messages match besides, which is often nothing."""
        if shy:  # Rare.
            public = _merge([(s, o) for s, o in matches if s in shy and not o.no_local])
            self.own = {subscriber: public.get(subscriber) for subscriber in shy}
        self.subscribers = tuple(merged)
        self.few = self.subscribers if len(merged) <= VERY_MANY else ()
        """The same, if they are so few that the end of a turn writes to all of them."""
        shared = {s: o for s, o in merged.items() if not o.identifiers and s not in shy and s.takes_shared_frames}
        self.individual = tuple((s, o) for s, o in merged.items() if s not in shared)
        """Those that need a frame, or a decision, of their own."""
        self.appends_v4: tuple[Append, ...] = tuple(s.outbox.append for s in shared if not s.v5)
        self.appends_v5: tuple[Append, ...] = tuple(s.outbox.append for s in shared if s.v5)
        self.reliable = tuple(s for s, o in shared.items() if o.qos > 0)
        self.best_effort_v4: tuple[Append, ...] = tuple(
            s.outbox.append for s, o in shared.items() if o.qos == 0 and not s.v5
        )
        self.best_effort_v5: tuple[Append, ...] = tuple(
            s.outbox.append for s, o in shared.items() if o.qos == 0 and s.v5
        )

        self.is_wide = len(merged) > VERY_MANY
        """Whether they are very many."""
        self.is_costly = self.is_wide or len(self.individual) + len(self.reliable) > _COSTLY
        """Whether what is done for one message counts (`broker.sockets.work`)."""

    def deliver(self, message: Message, sender: object, now: float) -> Subscriber | None:
        """Give *message* to each recipient, one by one: the obvious way, for all that the data path does not inline.

        Returns a recipient for which *sender* should be held, if there is one.
        """
        return self._deliver(self.recipients, message, sender, now)

    def deliver_once(self, message: Message, sender: object, now: float) -> Subscriber | None:
        """Do the same for *message* at QoS 0 that is not retained, with one packet for all who take the same."""
        if self.appends_v4:
            frame = message.frame(b"", v5=False, now=now)
            for append in self.appends_v4:
                append(frame)
        if self.appends_v5:
            frame = message.frame(b"", v5=True, now=now)
            for append in self.appends_v5:
                append(frame)
        return self.deliver_individually(message, sender, now)

    def deliver_individually(self, message: Message, sender: object, now: float) -> Subscriber | None:
        """Do the same for those recipients only that need a frame of their own."""
        return self._deliver(self.individual, message, sender, now)

    def _deliver(
        self,
        recipients: tuple[tuple[Subscriber, Subscription], ...],
        message: Message,
        sender: object,
        now: float,
    ) -> Subscriber | None:
        slow = None
        for subscriber, everything in recipients:
            subscription: Subscription | None = everything
            if subscriber is sender and subscriber in self.own:  # [MQTT-3.8.3-3]
                subscription = self.own[subscriber]
            if subscription is not None and subscriber.deliver(message, subscription, now):
                slow = subscriber
        return slow


def _merge(matches: list[tuple[Subscriber, Subscription]]) -> dict[Subscriber, Subscription]:
    merged: dict[Subscriber, Subscription] = {}
    for subscriber, subscription in matches:
        known = merged.get(subscriber)
        merged[subscriber] = subscription if known is None else known.merge(subscription)
    return merged


class Routes(dict[bytes, Route]):
    """The route of each topic name; see the module's invariants."""

    __slots__ = (
        "_cached",
        "_generation",
        "_gone",
        "_groups",
        "_held",
        "_remembered",
        "_searched",
        "_shared",
        "_stale",
        "_tree",
        "_work",
        "limit",
        "many",
    )

    def __init__(self, limit: int, work: Work | None = None) -> None:
        """Keep *limit* routes at most, and add to *work* what is done to make them, and to find the stale ones."""
        super().__init__()
        self.many: dict[bytes, Route] = {}
        """Routes whose messages are costly."""
        self._work = Work() if work is None else work
        self._tree: SubscriptionTree[Subscriber] = SubscriptionTree()
        self._cached = CachedNames()
        self._generation = 1
        self._held = 0
        """How many subscriptions the routes of the cache lead to."""
        self._remembered = 0
        self._searched = 0
        self.limit = limit
        self._shared: dict[_Key, Route] = {}
        self._gone: list[dict[_Key, Route]] = []
        """Routes that were forgotten with the cache, and are in memory still."""
        self._stale: list[bytes] = []
        """Names that are filed still, though their routes were forgotten."""
        self._groups: dict[tuple[str, str, str], ShareGroup] = {}
        """By trust domain, share name and topic filter."""

    @property
    def subscription_count(self) -> int:
        """How many subscriptions there are."""
        return len(self._tree)

    @property
    def shared_subscription_count(self) -> int:
        """How many members all shares have."""
        return sum(map(len, self._groups.values()))

    def __missing__(self, topic: bytes) -> Route:
        """Match *topic*; raise `MalformedPacket` if it is no topic name."""
        if (known := self.many.get(topic)) is not None:
            return known
        try:
            name = topic.decode()
        except UnicodeDecodeError:
            raise MalformedPacket("the topic name is not UTF-8") from None  # [MQTT-3.3.2-1]
        check_topic_name(name)
        if len(topic) > LONGEST_CACHED:
            return self._route(self._nodes(name), keep=False)
        if (
            len(self) + len(self.many) >= self.limit
            or self._remembered >= _REMEMBERED_BYTES * self.limit
            or self._cached.bytes >= _CACHED_BYTES * self.limit
            or self._held >= max(_HELD * self.limit, _HELD_ANYWAY)
        ):
            self._start_anew()
        if self._gone or self._stale:
            self._let_go(_AT_A_TIME)
        nodes = self._nodes(name)
        for node in nodes:
            if node.wild and node.remember(topic, self._generation):
                self._remembered += _REMEMBERED_PLACE + len(topic)
        route = self._route(nodes)
        if route.is_costly:
            self.many[topic] = route
        else:
            self[topic] = route
        route.topics += 1
        self._cached.insert(topic)
        return route

    def _nodes(self, topic_name: str) -> list[Node[Subscriber]]:
        tree = self._tree
        before = tree.looked
        nodes = tree.nodes(topic_name)
        nodes_and_levels = tree.looked - before + topic_name.count("/")
        self._work.done += 1 + nodes_and_levels // _NODES_A_PACKET + len(topic_name) // _CHARACTERS_A_PACKET
        return nodes

    def _start_anew(self) -> None:
        if self._shared:
            self._gone.append(self._shared)  # A hundred thousand of them at once would be a tenth of a second.
            self._shared = {}
        self.clear()
        self.many.clear()
        self._cached.clear()
        self._stale.clear()
        self._generation += 1
        self._held = self._remembered = self._searched = 0

    def _let_go(self, most: int) -> None:
        """Free *most* of what was forgotten at once, and take as many names out of their files."""
        if self._gone:
            routes = self._gone[-1]
            for _ in range(min(most, len(routes))):
                routes.popitem()
            if not routes:
                self._gone.pop()
        for _ in range(min(most, len(self._stale))):
            topic = self._stale.pop()
            if topic not in self and topic not in self.many:  # Else it has been published again, and has a route.
                self._cached.remove(topic)

    def _route(self, nodes: list[Node[Subscriber]], *, keep: bool = True) -> Route:
        """Return the route to the subscriptions of *nodes*: the one that other topics have already, if there is one.

        What is filed at a node does not change under its routes: a change forgets all of them.
        """
        nodes = [node for node in nodes if node.subscriptions]
        key = tuple([id(node) for node in nodes])
        route = self._shared.get(key)
        if route is None:
            matches = [found for node in nodes for found in node.subscriptions.items()]
            self._work.done += len(matches) // _MATCHES_A_PACKET
            route = Route(matches)
            if keep:
                route.key, route.nodes = key, nodes
                self._shared[key] = route
                self._held += len(route.recipients)
        return route

    def subscribe(self, subscriber: Subscriber, subscription: Subscription) -> Subscription | None:
        """Add *subscription*; return the one it replaces [MQTT-3.8.4-3], or None."""
        replaced = self._tree.insert(subscriber, subscription)
        self.invalidate(subscription.topic_filter)
        return replaced

    def unsubscribe(self, subscriber: Subscriber, topic_filter: str) -> bool:
        """Remove a subscription; return whether there was one."""
        existed = self._tree.remove(subscriber, topic_filter)
        if existed:
            self.invalidate(topic_filter)
        return existed

    def join(self, trust_domain: str, share_name: str, member: Member, subscription: Subscription) -> bool:
        """Make *member*, of *trust_domain*, one of the share *share_name* of its filter; return whether it was before.

        A share is among parties of one trust domain: who joins another's would take messages away from it.
        """
        key = trust_domain, share_name, subscription.topic_filter
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = ShareGroup(str(SharedSubscription(share_name, subscription.topic_filter)))
            self.subscribe(group, Subscription(subscription.topic_filter, QoS.EXACTLY_ONCE))
        return group.join(member, subscription)

    def share(self, trust_domain: str, topic_filter: str) -> ShareGroup | None:
        """Return the Shared Subscription of *topic_filter* (``$share/…``) in *trust_domain*.

        None: it has no members, or is none.
        """
        shared = SharedSubscription.parse(topic_filter)
        return None if shared is None else self._groups.get((trust_domain, shared.share_name, shared.topic_filter))

    def leave(self, trust_domain: str, share_name: str, member: Member, topic_filter: str) -> bool:
        """Take *member* out of the share; return whether it was one."""
        key = trust_domain, share_name, topic_filter
        group = self._groups.get(key)
        if group is None or not group.leave(member):
            return False
        if not len(group):
            del self._groups[key]
            self.unsubscribe(group, topic_filter)
        return True

    def invalidate(self, topic_filter: str) -> None:
        """Forget the routes that a change under *topic_filter* may have altered."""
        node = self._tree.find(topic_filter)
        stale: Collection[bytes] | None = node.remembered(self._generation) if node is not None and node.wild else None
        if stale is None:
            steps = self._cached.steps(topic_filter)
            self._searched += steps
            self._work.done += steps // _NAMES_A_PACKET
            if self._searched > _STEPS_A_ROUTE * (len(self) + len(self.many)):
                self._start_anew()
                return
            stale = self._cached.find(topic_filter)
        if len(stale) > max(_MANY, (len(self) + len(self.many)) // 2):
            self._start_anew()
            return
        for topic in stale:
            route = self.pop(topic, None) or self.many.pop(topic, None)
            if route is None:  # Remembered, or filed, longer than it was cached.
                continue
            route.topics -= 1
            if route.topics == 0 and route.key is not None:  # It must not outlive its subscribers.
                del self._shared[route.key]
                self._held -= len(route.recipients)
            self._stale.append(topic)
        self._work.done += len(stale) // _NAMES_A_PACKET
        if self._stale:  # To take a name out of its files is nearly all that it costs: many of them go by and by.
            self._let_go(_AT_ONCE)
