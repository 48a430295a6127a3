"""The subscription tree: which subscribers a topic name reaches. The truth; `router` is its cache.

Theory
------
One node a topic level, as in nats-server's sublist. A match walks the levels of one topic name, so its cost grows with
the depth of the topic and the number of matches, not with the number of subscriptions.

Rules
-----
1. No I/O, no clock, no knowledge of what a subscriber is: it is an object with a hash.
2. ``match(name)`` finds exactly the filters that `broker.mqtt.topics.matches` accepts (property-tested).
3. A removed filter leaves no empty node behind.
"""

from __future__ import annotations

from typing import Generic, TypeVar

from broker.mqtt.subscription import Subscription

S = TypeVar("S")


class _Node(Generic[S]):
    __slots__ = ("children", "subscriptions")

    def __init__(self) -> None:
        self.children: dict[str, _Node[S]] = {}
        self.subscriptions: dict[S, Subscription] = {}


class SubscriptionTree(Generic[S]):
    """Every subscription of every subscriber, by topic filter."""

    __slots__ = ("_count", "_root")

    def __init__(self) -> None:
        self._root: _Node[S] = _Node()
        self._count = 0

    def __len__(self) -> int:
        """Return the number of subscriptions."""
        return self._count

    def insert(self, subscriber: S, subscription: Subscription) -> Subscription | None:
        """File *subscription*; return the one it replaces [MQTT-3.8.4-3], or None."""
        node = self._root
        for level in subscription.topic_filter.split("/"):
            child = node.children.get(level)
            if child is None:
                child = node.children[level] = _Node()
            node = child
        replaced = node.subscriptions.get(subscriber)
        node.subscriptions[subscriber] = subscription
        self._count += replaced is None
        return replaced

    def remove(self, subscriber: S, topic_filter: str) -> bool:
        """Take the subscription away; return whether there was one."""
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
        for depth in range(len(levels), 0, -1):
            if path[depth].subscriptions or path[depth].children:
                break
            del path[depth - 1].children[levels[depth - 1]]
        return True

    def match(self, topic_name: str) -> list[tuple[S, Subscription]]:
        """Return every subscription that *topic_name* matches; a subscriber may be in it more than once."""
        found: list[tuple[S, Subscription]] = []
        nodes = [self._root]
        # A wildcard in the first level does not match a name beginning with "$" [MQTT-4.7.2-1].
        wildcards_allowed = not topic_name.startswith("$")
        for level in topic_name.split("/"):
            below: list[_Node[S]] = []
            for node in nodes:
                children = node.children
                if wildcards_allowed:
                    if (tail := children.get("#")) is not None:
                        found += tail.subscriptions.items()
                    if (child := children.get("+")) is not None:
                        below.append(child)
                if (child := children.get(level)) is not None:
                    below.append(child)
            if not below:
                return found
            nodes = below
            wildcards_allowed = True
        for node in nodes:
            found += node.subscriptions.items()
            if (tail := node.children.get("#")) is not None:  # It matches the parent level too (MQTT 5 §4.7.1.2).
                found += tail.subscriptions.items()
        return found
