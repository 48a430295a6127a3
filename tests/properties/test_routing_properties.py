"""Cache, tree, names and the reference matcher agree, whatever is subscribed and published in between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.mqtt.subscription import Subscription
from broker.mqtt.topics import matches
from broker.routing.cached import CachedNames
from broker.routing.names import TopicNames
from broker.routing.router import Routes
from broker.routing.tree import SubscriptionTree
from tests.support.examples import examples
from tests.support.matching import matching
from tests.support.packet_strategies import topic_filters, topic_names

levels = st.sampled_from(["a", "b", "", "$x"])
few_names = st.lists(levels, min_size=1, max_size=3).map("/".join).filter(bool)
few_filters = (
    st.tuples(st.lists(levels | st.just("+"), max_size=3), st.sampled_from([(), ("#",)]))
    .map(lambda parts: "/".join((*parts[0], *parts[1])))
    .filter(bool)
)


class Subscriber:
    """Something to be found."""

    v5 = False
    takes_shared_frames = True

    def __init__(self, name: str) -> None:
        self.name = name
        self.outbox: list[bytes] = []

    def deliver(self, message: Any, subscription: Any, now: float) -> bool: ...  # type: ignore[empty-body]
    def deliver_reliably(self, message: Any, now: float) -> bool: ...  # type: ignore[empty-body]
    def hold(self, publisher: Any, now: float) -> bool:
        raise AssertionError(publisher, now)

    def give_up(self) -> None: ...
    def flush(self) -> None: ...


@given(st.lists(topic_filters, max_size=12), st.lists(topic_names, max_size=12))
def test_the_tree_matches_as_the_reference_does(filters: list[str], names: list[str]) -> None:
    tree: SubscriptionTree[str] = SubscriptionTree()
    for topic_filter in filters:
        tree.insert("me", Subscription(topic_filter, 0))
    for name in names:
        found = sorted(subscription.topic_filter for _, subscription in matching(tree, name))
        assert found == sorted({topic_filter for topic_filter in filters if matches(topic_filter, name)})


@given(st.lists(topic_names, max_size=12), st.lists(topic_filters, max_size=12))
def test_names_are_found_as_the_reference_matches(names: list[str], filters: list[str]) -> None:
    known: TopicNames[str] = TopicNames()
    for name in names:
        known.insert(name, name)
    for topic_filter in filters:
        found = [name for name in known.walk(topic_filter) if name is not None]
        assert sorted(found) == sorted({name for name in names if matches(topic_filter, name)})


@examples(120, of=300)
@given(
    st.lists(st.tuples(st.booleans(), few_names | topic_names), max_size=30),
    st.lists(few_filters | topic_filters, min_size=1, max_size=8),
)
def test_names_in_files_are_found_as_the_reference_matches(steps: list[tuple[bool, str]], filters: list[str]) -> None:
    known, slow = CachedNames(), TopicNames[bytes]()
    names: set[str] = set()
    for insert, name in steps:
        if insert:
            known.insert(name.encode())
            slow.insert(name, name.encode())
            names.add(name)
        else:
            known.remove(name.encode())
            slow.remove(name)
            names.discard(name)
        assert len(known) == len(names)
    for topic_filter in filters:
        found = sorted(known.find(topic_filter))
        assert found == sorted(name.encode() for name in names if matches(topic_filter, name))
        assert found == sorted(name for name in slow.walk(topic_filter) if name is not None)
        assert len(found) <= known.steps(topic_filter) <= len(names)
    for name in names:
        known.remove(name.encode())
    assert known._depths == {}
    assert not any(known._places)


@given(st.lists(st.tuples(st.booleans(), few_names), max_size=40))
def test_names_are_a_mapping_and_keep_no_empty_branch(steps: list[tuple[bool, str]]) -> None:
    known: TopicNames[int] = TopicNames()
    model: dict[str, int] = {}
    for index, (insert, name) in enumerate(steps):
        if insert:
            assert known.insert(name, index) == model.get(name)
            model[name] = index
        else:
            assert known.remove(name) == model.pop(name, None)
        assert len(known) == len(model)
    assert all(known.get(name) == value for name, value in model.items())
    for name in model:
        known.remove(name)
    assert known._root.children == {}


steps = st.one_of(
    st.tuples(st.just("subscribe"), st.integers(0, 2), few_filters, st.integers(0, 1)),
    st.tuples(st.just("unsubscribe"), st.integers(0, 2), few_filters, st.just(0)),
    st.tuples(st.just("publish"), st.just(0), few_names, st.just(0)),
    st.tuples(st.just("publish"), st.just(0), few_names, st.just(0)),
)


@examples(120, of=300)
@given(st.lists(steps, max_size=60), st.integers(1, 4))
def test_a_cached_route_is_always_what_the_reference_says(
    sequence: list[tuple[str, int, str, int]], limit: int
) -> None:
    routes = Routes(limit)
    subscribers = [Subscriber(str(index)) for index in range(3)]
    model: dict[tuple[int, str], int] = {}
    act: dict[str, Callable[[int, str, int], None]] = {}

    def subscribe(who: int, topic_filter: str, qos: int) -> None:
        replaced = routes.subscribe(subscribers[who], Subscription(topic_filter, qos))
        assert (replaced is not None) == ((who, topic_filter) in model)
        model[who, topic_filter] = qos

    def unsubscribe(who: int, topic_filter: str, _qos: int) -> None:
        assert routes.unsubscribe(subscribers[who], topic_filter) == (model.pop((who, topic_filter), None) is not None)

    def publish(_who: int, name: str, _qos: int) -> None:
        expected: dict[str, int] = {}
        for (who, topic_filter), qos in model.items():
            if matches(topic_filter, name):
                expected[str(who)] = max(qos, expected.get(str(who), 0))
        route = routes[name.encode()]
        assert {subscriber.name: found.qos for subscriber, found in route.recipients} == expected  # type: ignore[attr-defined]
        assert {subscriber.name for subscriber in route.reliable} == {who for who, qos in expected.items() if qos}  # type: ignore[attr-defined]
        assert len(routes) <= limit
        assert len(routes._cached) == len(routes)

    act = {"subscribe": subscribe, "unsubscribe": unsubscribe, "publish": publish}
    for kind, who, text, qos in sequence:
        act[kind](who, text, qos)
        assert routes.subscription_count == len(model)
