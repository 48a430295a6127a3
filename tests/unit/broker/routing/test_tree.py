"""The subscription tree against the standard's own examples, and what is left of it when all have gone."""

from __future__ import annotations

import pytest

from broker.mqtt.subscription import Subscription
from broker.routing.tree import SubscriptionTree

Tree = SubscriptionTree[str]


def test_the_same_subscriber_may_match_more_than_once() -> None:
    tree: Tree = SubscriptionTree()
    for topic_filter in ("a/#", "a/+", "a/b", "+/b"):
        assert tree.insert("me", Subscription(topic_filter, 0)) is None
    assert sorted(found.topic_filter for _, found in tree.match("a/b")) == ["+/b", "a/#", "a/+", "a/b"]


@pytest.mark.parametrize(
    ("topic_filter", "matching", "others"),
    [
        ("sport/#", ["sport", "sport/tennis", "sport/tennis/a"], ["sports", "Sport", "/sport"]),
        ("sport/+", ["sport/", "sport/x"], ["sport", "sport/x/y"]),
        ("+", ["a", "sport"], ["/a", "a/", "$SYS"]),
        ("/+", ["/finance", "/"], ["finance", "//"]),
        ("+/+", ["/finance", "a/b", "/"], ["a"]),
        ("#", ["a", "/", "a/b"], ["$SYS", "$SYS/x"]),
        ("$SYS/#", ["$SYS", "$SYS/a"], ["SYS/a"]),
        ("+/monitor", ["a/monitor"], ["$SYS/monitor"]),
        ("a//b", ["a//b"], ["a/b", "a/x/b"]),
    ],
)
def test_matching(topic_filter: str, matching: list[str], others: list[str]) -> None:
    tree: Tree = SubscriptionTree()
    tree.insert("me", Subscription(topic_filter, 0))
    assert [name for name in matching + others if tree.match(name)] == matching


def test_replacing_returns_what_was_replaced() -> None:
    tree: Tree = SubscriptionTree()
    first, second = Subscription("a", 0), Subscription("a", 1)
    assert tree.insert("me", first) is None
    assert tree.insert("me", second) is first
    assert tree.match("a") == [("me", second)]
    assert len(tree) == 1


def test_removing_what_is_not_there_changes_nothing() -> None:
    tree: Tree = SubscriptionTree()
    tree.insert("me", Subscription("a/b", 0))
    for subscriber, topic_filter in (("you", "a/b"), ("me", "a"), ("me", "a/b/c"), ("me", "x")):
        assert not tree.remove(subscriber, topic_filter)
    assert len(tree) == 1


def test_no_empty_node_is_left_behind() -> None:
    tree: Tree = SubscriptionTree()
    filters = ["a/b/c/d", "a/b", "a/+/c", "#", "a/b/c/e"]
    for topic_filter in filters:
        tree.insert("me", Subscription(topic_filter, 0))
        tree.insert("you", Subscription(topic_filter, 0))
    for topic_filter in filters:
        assert tree.remove("me", topic_filter)
        assert tree.remove("you", topic_filter)
    assert len(tree) == 0
    assert tree._root.children == {}
