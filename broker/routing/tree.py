"""The subscription tree: which subscribers a topic name reaches. The source of truth; `router` is its cache.

Theory
------
One node per topic level, as in nats-server's sublist. A match walks the levels of one topic name, so its cost grows
with the depth of the topic and the number of matches, not with the number of subscriptions.

The node of a filter with a wildcard also remembers the names matched through it. When one more client subscribes to a
filter that others already have, the cache need not search for the affected names. In a connect storm every device
subscribes to the same few wildcards, and searching the names of all others each time would be quadratic.

Rules
-----
1. No I/O, no clock, no knowledge of subscribers: each is an object with a hash.
2. ``nodes(name)`` finds exactly the filters that `broker.mqtt.topics.matches` accepts (property-tested).
3. A removed filter leaves no empty node behind.
4. What a node remembers is complete while it has subscriptions and belongs to the present *generation* of the cache;
   otherwise it is unusable (`Node.remembered`). It may include names that the cache has dropped since.
5. Most nodes have either children or subscriptions: those that have none share one empty dict, which is never changed.
"""

from __future__ import annotations

from typing import Any, Final, Generic, TypeVar

from broker.mqtt.subscription import Subscription

S = TypeVar("S")

_NONE: Final[dict[Any, Any]] = {}


class Node(Generic[S]):
    """One level of a filter; *wild*: it or a level above it is a wildcard."""

    __slots__ = ("_generation", "_names", "children", "subscriptions", "wild")

    def __init__(self, *, wild: bool = False) -> None:
        self.children: dict[str, Node[S]] = _NONE
        self.subscriptions: dict[S, Subscription] = _NONE
        self.wild = wild
        self._names: set[bytes] | None = None
        self._generation = 0

    def remember(self, topic: bytes, generation: int) -> bool:
        """Remember that *topic* was matched here; return whether that is new."""
        names = self._names
        if names is None:
            return False  # It is incomplete anyway.
        if self._generation != generation:
            self._generation = generation
            names.clear()
        if topic in names:
            return False
        names.add(topic)
        return True

    def remembered(self, generation: int) -> set[bytes] | None:
        """Return and forget every name matched here in this *generation*; None if that is not known."""
        names = self._names
        complete = names is not None
        known = names if names is not None and self._generation == generation else set()
        # Complete from now on: the caller drops every name that the filter matches.
        self._names = set() if self.wild and self.subscriptions else None
        self._generation = generation
        return known if complete else None


class SubscriptionTree(Generic[S]):
    """Every subscription of every subscriber, by topic filter."""

    __slots__ = ("_count", "_root", "looked")

    def __init__(self) -> None:
        self._root: Node[S] = Node()
        self._count = 0
        self.looked = 0
        """How many nodes all searches for topic names have visited."""

    def __len__(self) -> int:
        """Return the number of subscriptions."""
        return self._count

    def insert(self, subscriber: S, subscription: Subscription) -> Subscription | None:
        """File *subscription*; return the one it replaces [MQTT-3.8.4-3], or None."""
        node = self._root
        for level in subscription.topic_filter.split("/"):
            child = node.children.get(level)
            if child is None:
                if node.children is _NONE:
                    node.children = {}
                child = node.children[level] = Node(wild=node.wild or level in {"+", "#"})
            node = child
        if node.subscriptions is _NONE:
            node.subscriptions = {}
        replaced = node.subscriptions.get(subscriber)
        node.subscriptions[subscriber] = subscription
        self._count += replaced is None
        return replaced

    def remove(self, subscriber: S, topic_filter: str) -> bool:
        """Remove the subscription; return whether it existed."""
        path = [self._root]
        levels = topic_filter.split("/")
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return False
            path.append(child)
        if path[-1].subscriptions.pop(subscriber, None) is None:
            return False
        self._count -= 1
        if not path[-1].subscriptions:
            path[-1].remembered(0)
        for depth in range(len(levels), 0, -1):
            if path[depth].subscriptions or path[depth].children:
                break
            del path[depth - 1].children[levels[depth - 1]]
        return True

    def find(self, topic_filter: str) -> Node[S] | None:
        """Return the node of *topic_filter*, or None."""
        node = self._root
        for level in topic_filter.split("/"):
            child = node.children.get(level)
            if child is None:
                return None
            node = child
        return node

    def nodes(self, topic_name: str) -> list[Node[S]]:
        """Return the nodes of every filter that matches *topic_name*; some have no subscriptions."""
        found: list[Node[S]] = []
        nodes = [self._root]
        # A wildcard in the first level does not match a name beginning with "$" [MQTT-4.7.2-1].
        wildcards_allowed = not topic_name.startswith("$")
        for level in topic_name.split("/"):
            below: list[Node[S]] = []
            for node in nodes:
                children = node.children
                if wildcards_allowed:
                    if (tail := children.get("#")) is not None:
                        found.append(tail)
                    if (child := children.get("+")) is not None:
                        below.append(child)
                if (child := children.get(level)) is not None:
                    below.append(child)
            self.looked += len(nodes)
            if not below:
                return found
            nodes = below
            wildcards_allowed = True
        found += nodes
        for node in nodes:
            if (tail := node.children.get("#")) is not None:  # It matches the parent level too (MQTT 5 §4.7.1.2).
                found.append(tail)
        return found
