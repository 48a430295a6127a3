"""What a subscription tree finds, as subscriptions: the broker itself makes a route of the nodes."""

from __future__ import annotations

from typing import TypeVar

from broker.mqtt.subscription import Subscription
from broker.routing.tree import SubscriptionTree

S = TypeVar("S")


def matching(tree: SubscriptionTree[S], topic_name: str) -> list[tuple[S, Subscription]]:
    """Return every subscription in *tree* that matches *topic_name*; a subscriber may occur more than once."""
    return [found for node in tree.nodes(topic_name) for found in node.subscriptions.items()]
