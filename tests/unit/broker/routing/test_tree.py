"""The subscription tree against the standard's own examples, and what is left of it when all have gone."""

from __future__ import annotations

import pytest

from broker.mqtt.subscription import Subscription
from broker.routing.tree import Node, SubscriptionTree
from tests.support.matching import matching as found_in

Tree = SubscriptionTree[str]


def test_the_same_subscriber_may_match_more_than_once() -> None:
    tree: Tree = SubscriptionTree()
    for topic_filter in ("a/#", "a/+", "a/b", "+/b"):
        assert tree.insert("me", Subscription(topic_filter, 0)) is None
    assert sorted(found.topic_filter for _, found in found_in(tree, "a/b")) == ["+/b", "a/#", "a/+", "a/b"]


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
    assert [name for name in matching + others if found_in(tree, name)] == matching


def test_replacing_returns_what_was_replaced() -> None:
    tree: Tree = SubscriptionTree()
    first, second = Subscription("a", 0), Subscription("a", 1)
    assert tree.insert("me", first) is None
    assert tree.insert("me", second) is first
    assert found_in(tree, "a") == [("me", second)]
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


def test_a_node_of_a_wildcard_knows_what_was_matched_there_in_this_generation_of_the_cache() -> None:
    node: Node[str] = Node(wild=True)
    node.subscriptions["one"] = Subscription("+", 0)
    assert not node.remember(b"a", 1)
    assert node.remembered(1) is None, "what was matched before is not known"
    assert [node.remember(topic, 1) for topic in (b"a", b"b", b"a")] == [True, True, False]
    assert node.remembered(1) == {b"a", b"b"}
    assert node.remembered(1) == set(), "they were forgotten, and all that come from now on are known"
    assert node.remember(b"c", 1)
    assert [node.remember(topic, 2) for topic in (b"d", b"e")] == [True, True]
    assert node.remembered(2) == {b"d", b"e"}, "the cache has begun anew"
    assert node.remember(b"f", 2)
    assert node.remembered(3) == set()
    node.subscriptions.clear()
    assert node.remembered(3) == set()
    assert not node.remember(b"g", 3), "nobody will ask"
    assert node.remembered(3) is None


def test_only_a_filter_with_a_wildcard_remembers_and_only_while_somebody_has_it() -> None:
    tree: SubscriptionTree[str] = SubscriptionTree()
    for topic_filter, wild in (("a/b", False), ("a/+", True), ("a/#", True), ("+/b/c", True), ("a/+/b/c", True)):
        tree.insert("one", Subscription(topic_filter, 0))
        node = tree.find(topic_filter)
        assert node is not None
        assert node.wild is wild, topic_filter
    above = tree.find("a/+")
    assert above is not None
    assert above.remembered(1) is None
    assert above.remember(b"a/x", 1)
    tree.remove("one", "a/+")
    tree.insert("two", Subscription("a/+", 0))
    assert above is tree.find("a/+"), "another filter is below it"
    assert above.remembered(1) is None, "what was matched meanwhile is not known"
