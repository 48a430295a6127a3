"""Topic name to route: a tree as the source of truth, a dict for speed.

Theory
------
A `Route` is everything the data path needs to know about one topic name: the ``append`` of each outbox that gets a
QoS 0 message unchanged, by protocol version; the subscribers of QoS 1; and the few that need a frame of their own.
Publishing to a cached topic is then one dict look-up and a loop of appends.

A fleet publishes to many topics that few subscribers read, so topics that match the same filters share one Route: it
exists already when the second device sends its first message, and a turn with messages of a thousand devices flushes it
once. It is found by the tree nodes of those filters, which are few, however many subscribers each of them has
(decision 0199).

A route changes only when a matching subscription does. It does not depend on whether a subscriber is connected, since
an outbox lives as long as its session. When a filter is added or removed, the cached names that it matches are found by
their rarest word (`broker.routing.cached`) and dropped; a device that subscribes to its own topics affects no other
device's routes. If other subscribers have the same filter already, its node knows those names (`broker.routing.tree`).

Hot: a hit is a C look-up, `Routes.__missing__` is cold. Budget: part of that of `broker.connection.connection`; both
are measured by benchmarks/receive_loop.py, a miss by benchmarks/subscriptions.py. Slow twins: `recipients`
delivered one by one (tests/properties/test_fast_path_properties.py), and the reference matcher
(tests/properties/test_routing_properties.py).

Invariants
----------
1. A Route is immutable, except for its count of topics; a change of subscriptions replaces it, never edits it. It does
   not contain its topic.
2. ``routes[topic]`` always equals the tree's answer (property-tested, with and without the cache).
3. At most *limit* routes are kept, and memory is bounded to little more than that many routes with usual names take;
   this includes names at wildcard nodes, and subscribers. Clients choose the names (decision 0184), and how many of
   them subscribe to what (decision 0199). A name longer than `LONGEST_CACHED` bytes is matched each time.
4. Searching for stale routes never costs more than a few times as much as rebuilding all routes: beyond that the cache
   is cleared instead. So a publication pays for one match and some searches, and a subscription for nothing that no
   publication has paid for, whatever filters clients choose (decision 0095). Both costs are added to `Work`.
5. The route of a costly topic, because many subscribers each need their own packet, or there are very many, is in
   `many` and not in the dict itself. So the data path does not find it; `broker.connection.authorization` then adds up
   the work, so that a read full of such messages is divided, and very many subscribers are written to in rounds
   (`broker.sockets.rounds`).
6. One change removes few names from their files, however many routes it makes stale; the rest is removed by later
   changes (decision 0172). Until then a search finds a filed name without a route, in vain.
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
from broker.routing.shared import Lagging, Member, ShareGroup
from broker.routing.tree import Node, SubscriptionTree
from broker.sockets.rounds import VERY_MANY
from broker.sockets.work import Work
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role


class Subscriber(Protocol):
    """The destination of a route: a session."""

    outbox: list[bytes]

    @property
    def v5(self) -> bool:
        """Whether it speaks MQTT 5."""

    @property
    def takes_shared_frames(self) -> bool:
        """Whether it gets the same bytes as others."""

    def deliver(self, message: Message, subscription: Subscription, now: float) -> bool:
        """Send or queue *message* as *subscription* asks; return whether to hold the publisher."""

    def deliver_reliably(self, message: Message, now: float) -> bool:
        """Send or queue *message* at QoS 1, without other flags; return whether to hold the publisher."""

    def hold(self, publisher: Any, now: float) -> bool:
        """Remember that *publisher* is not read until the queue is short again; False: it is."""

    def give_up(self) -> None:
        """Hold no publishers any more."""

    def flush(self) -> None:
        """Write out the outbox."""


Append = Callable[[bytes], None]

_COSTLY = 16
"""Deliveries of one message, each a packet of its own, beyond which they are counted: 2 µs each, and a read may hold
hundreds of messages."""

_HELD = 4
_HELD_ANYWAY = 100_000
"""Subscribers in all routes: allowed per route that may be kept, and in any case; 250 bytes each."""

_REMEMBERED_BYTES = 640
"""Bytes of names remembered by wildcard nodes, per route that may be kept: some six names of 40 bytes."""

_REMEMBERED_PLACE = 64
"""What such a name takes besides its own bytes."""

_CACHED_BYTES = 1_280
"""Bytes of cached names with their words, per route that may be kept: a usual one takes 470 to 800."""

LONGEST_CACHED = 512
"""Bytes of a topic name that is cached: a client may use 65,535 of them, and another name each time."""

_STEPS_A_ROUTE = 64
"""Steps of a search that cost about half as much as matching one topic name."""

_NODES_A_PACKET = 64
_MATCHES_A_PACKET = 32
_NAMES_A_PACKET = 256
_CHARACTERS_A_PACKET = 8192
"""How many tree nodes, subscriptions of a route, names of a search, or characters of a topic name cost as much as one
packet (`broker.sockets.work`)."""

_AT_ONCE = 64
"""Names that a change of subscriptions removes from their files; later changes, or `_AT_A_TIME`, remove the rest."""
_AT_A_TIME = 2
"""What each new route frees: twice as much as it adds."""

_MANY = 4096
"""Stale names that are dropped one by one, even if they are most of the cache."""

_Key = tuple[int, ...]

_NOBODY: Mapping[Subscriber, Subscription | None] = MappingProxyType({})


class Route:
    """The recipients of the messages of one topic name."""

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
        """The key under which it is found while topics share it."""
        self.nodes: list[Node[Subscriber]] = []
        """The nodes of its subscriptions: kept alive, so that no other object can get their identity meanwhile."""
        self.topics = 0
        """How many cached topics it serves."""
        merged = _merge(matches)
        self.recipients = tuple(merged.items())
        """Every subscriber once, with overlapping subscriptions merged."""
        shy = {subscriber for subscriber, subscription in matches if subscription.no_local}
        self.own: Mapping[Subscriber, Subscription | None] = _NOBODY
        """For subscribers with No Local: their other subscriptions that match their own messages, often none."""
        if shy:  # Rare.
            public = _merge([(s, o) for s, o in matches if s in shy and not o.no_local])
            self.own = {subscriber: public.get(subscriber) for subscriber in shy}
        self.subscribers = tuple(merged)
        self.few = self.subscribers if len(merged) <= VERY_MANY else ()
        """The same, if there are few enough for the end of a turn to write to all of them."""
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
        """Whether there are very many."""
        self.is_costly = self.is_wide or len(self.individual) + len(self.reliable) > _COSTLY
        """Whether the work for one message counts (`broker.sockets.work`)."""

    def deliver(self, message: Message, sender: object, now: float) -> Subscriber | None:
        """Deliver *message* to each recipient, one by one: the straightforward way, for what the data path leaves out.

        Returns a recipient for which *sender* should be held, or None.
        """
        return self._deliver(self.recipients, message, sender, now)

    def deliver_once(self, message: Message, sender: object, now: float) -> Subscriber | None:
        """Do the same for a QoS 0 message that is not retained, with one packet for all that take the same."""
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
        """Do the same only for recipients that need a frame of their own."""
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
        "lagging",
        "limit",
        "many",
    )

    def __init__(self, limit: int, work: Work | None = None) -> None:
        """Keep at most *limit* routes; add to *work* the cost of building them, and of finding stale ones."""
        super().__init__()
        self.many: dict[bytes, Route] = {}
        """The routes of costly topics."""
        self._work = Work() if work is None else work
        self._tree: SubscriptionTree[Subscriber] = SubscriptionTree()
        self._cached = CachedNames()
        self._generation = 1
        self._held = 0
        """How many subscriptions the cached routes lead to."""
        self._remembered = 0
        self._searched = 0
        self.limit = limit
        self._shared: dict[_Key, Route] = {}
        self._gone: list[dict[_Key, Route]] = []
        """Routes that were dropped with the cache and are still in memory."""
        self._stale: list[bytes] = []
        """Names that are still filed, though their routes were dropped."""
        self.lagging = Lagging()
        """The members of shares that have no room for now."""
        self._groups: dict[tuple[str, Role, str, str], ShareGroup] = {}
        """By trust domain, role, share name and topic filter."""

    @property
    def subscription_count(self) -> int:
        """How many subscriptions there are, besides those of shares."""
        return len(self._tree) - len(self._groups)

    @property
    def shared_subscription_count(self) -> int:
        """How many members all shares have."""
        return sum(map(len, self._groups.values()))

    def __missing__(self, topic: bytes) -> Route:
        """Match *topic*; raise `MalformedPacket` if it is not a topic name."""
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
            self._gone.append(self._shared)  # Freeing a hundred thousand at once would take a tenth of a second.
            self._shared = {}
        self.clear()
        self.many.clear()
        self._cached.clear()
        self._stale.clear()
        self._generation += 1
        self._held = self._remembered = self._searched = 0

    def _let_go(self, most: int) -> None:
        """Free *most* of the routes that were dropped at once, and remove as many names from their files."""
        if self._gone:
            routes = self._gone[-1]
            for _ in range(min(most, len(routes))):
                routes.popitem()
            if not routes:
                self._gone.pop()
        for _ in range(min(most, len(self._stale))):
            topic = self._stale.pop()
            if topic not in self and topic not in self.many:  # Otherwise it was published again, and has a route.
                self._cached.remove(topic)

    def _route(self, nodes: list[Node[Subscriber]], *, keep: bool = True) -> Route:
        """Return the route to the subscriptions of *nodes*: an existing one of other topics, if possible.

        The subscriptions at a node do not change under its routes: a change drops all of them.
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

    def join(self, owner: Identity, share_name: str, member: Member, subscription: Subscription) -> bool:
        """Add *member*, of *owner*, to the share *share_name* of its filter; return whether it was in it before.

        A share belongs to one trust domain and one role: a member of another would take messages away from it.
        """
        key = owner.trust_domain, owner.role, share_name, subscription.topic_filter
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = ShareGroup(
                str(SharedSubscription(share_name, subscription.topic_filter)), self.lagging
            )
            self.subscribe(group, Subscription(subscription.topic_filter, QoS.EXACTLY_ONCE))
        return group.join(member, subscription)

    def share(self, owner: Identity, topic_filter: str) -> ShareGroup | None:
        """Return the Shared Subscription of *topic_filter* (``$share/…``) that *owner*'s sessions would be members of.

        None: it has no members, or is not a Shared Subscription.
        """
        shared = SharedSubscription.parse(topic_filter)
        if shared is None:
            return None
        return self._groups.get((owner.trust_domain, owner.role, shared.share_name, shared.topic_filter))

    def returned(self, owner: Identity, topic_filter: str, member: Member) -> None:
        """Take note that the client of *member*, of *owner*, in the share *topic_filter*, is connected again."""
        group = self.share(owner, topic_filter)
        if group is not None:
            group.returned(member)

    def leave(self, owner: Identity, share_name: str, member: Member, topic_filter: str) -> bool:
        """Remove *member*, of *owner*, from the share; return whether it was a member."""
        key = owner.trust_domain, owner.role, share_name, topic_filter
        group = self._groups.get(key)
        if group is None or not group.leave(member):
            return False
        if not len(group):
            del self._groups[key]
            self.unsubscribe(group, topic_filter)
        return True

    def invalidate(self, topic_filter: str) -> None:
        """Drop the routes that a change under *topic_filter* may have altered."""
        if not self and not self.many:
            return  # Nothing is cached, as while very many subscriptions are restored.
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
            if route is None:  # It was remembered, or filed, longer than it was cached.
                continue
            route.topics -= 1
            if route.topics == 0 and route.key is not None:  # It must not outlive its subscribers.
                del self._shared[route.key]
                self._held -= len(route.recipients)
            self._stale.append(topic)
        self._work.done += len(stale) // _NAMES_A_PACKET
        if self._stale:  # Removing a name from its files is nearly all of the cost: many are removed gradually.
            self._let_go(_AT_ONCE)
