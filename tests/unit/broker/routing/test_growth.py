"""What grows and what must not: the work of subscribing and matching, counted in lines of Python, not timed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest

from broker.metrics import Metrics
from broker.mqtt.subscription import Subscription
from broker.routing import cached, names, router, tree
from broker.routing.router import Routes
from broker.session.queue import QueueLimits
from broker.session.session import Session
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

LIMITS = QueueLimits(100, 10_000)
COUNTED = {module.__file__ for module in (cached, names, router, tree)}

pytestmark = pytest.mark.skipif(
    not router.__file__.endswith(".py"), reason="compiled code has no lines; the plain twin's are counted"
)


def lines_of(work: Callable[[], Any]) -> int:
    """Return how many lines of the routing modules *work* runs."""
    count = 0

    def local(_frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return local

    def trace(frame: FrameType, _event: str, _argument: object) -> Any:
        return local if frame.f_code.co_filename in COUNTED else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def session(name: str) -> Session:
    return Session(name, Identity("fleet.internal", Role.DEVICE, name, "meters"), LIMITS, Metrics())


def arrives(routes: Routes, name: str, wildcard: str) -> None:
    """A device subscribes to its own topics and to what all share, and its topics become warm."""
    device = session(name)
    routes.subscribe(device, Subscription(f"fleet/meters/{name}/cmd/#", 1))
    routes.subscribe(device, Subscription(wildcard, 0))
    for what in ("telemetry", "event", "cmd/x"):
        assert routes[f"fleet/meters/{name}/{what}".encode()].topics


@pytest.mark.parametrize("wildcard", ["fleet/all/#", "fleet/meters/+/alert", "fleet/+/+/alert/#", "+/meters/+/alert/+"])
def test_the_thousandth_device_of_a_storm_costs_what_the_tenth_does(wildcard: str) -> None:
    routes = Routes(100_000)
    costs = [lines_of(lambda: arrives(routes, f"m{number}", wildcard)) for number in range(1000)]
    assert max(costs[10:]) <= max(costs[2:10])


@pytest.mark.parametrize("own", ["fleet/meters/+/{}/#", "fleet/+/{}/#", "+/meters/{}/+", "+/+/+/{}", "+/x/{}/#"])
def test_the_thousandth_device_with_a_wildcard_of_its_own_costs_what_the_tenth_does(own: str) -> None:
    routes = Routes(100_000)
    costs = [lines_of(lambda: arrives(routes, f"m{number}", own.format(f"m{number}"))) for number in range(1000)]
    assert max(costs[10:]) <= max(costs[2:10])
    if own == "fleet/+/{}/#":  # Its own three, and a thousand others' that nothing has forgotten.
        assert len(routes) == 3000


def test_whoever_chooses_the_filters_a_search_costs_no_more_than_to_match_anew() -> None:
    """Names of which every word is frequent, and ever new filters that match few of them, or none."""

    class Counting(cached.CachedNames):
        searched = 0

        def steps(self, topic_filter: str) -> int:
            steps = super().steps(topic_filter)
            self.searched += steps
            return steps

    routes, size, publications = Routes(100_000), 30, 0
    routes._cached = names_of = Counting()
    names = [b"a%d/b%d/c%d" % (x, y, (x + y) % size) for x in range(size) for y in range(size)]
    listener = session("listener")
    for number in range(20_000):
        if number % 20 == 0:
            topic = names[number // 20 % len(names)]
            publications += topic not in routes
            assert routes[topic].topics
        x, y = number % size, number // size % size
        routes.subscribe(listener, Subscription(f"a{x}/+/c{y}/{number}/#" if number % 2 else f"a{x}/+/c{y}", 0))
    assert 0 < names_of.searched <= (router._STEPS_A_ROUTE + size) * publications


@pytest.mark.parametrize("wildcard", ["fleet/all/#", "fleet/meters/+/alert"])
def test_leaving_costs_the_same_too(wildcard: str) -> None:
    routes = Routes(100_000)
    devices = [session(f"m{number}") for number in range(500)]
    for device in devices:
        routes.subscribe(device, Subscription(wildcard, 0))
        assert routes[f"fleet/meters/{device.client_id}/telemetry".encode()].topics
    costs = [lines_of(lambda: routes.unsubscribe(device, wildcard)) for device in devices]
    assert max(costs[:-1]) <= costs[1]


def test_matching_costs_the_same_among_twenty_and_a_hundred_thousand_subscriptions() -> None:
    """Line for line, and node for node; what a clock shows beyond that is memory's (benchmarks/subscriptions.py)."""
    costs, visits = [], []
    for number in (10, 50_000):  # Two each, and the backend's.
        routes = Routes(100_000)
        for index in range(number):
            device = session(f"m{index}")
            for mine in ("cmd/#", "cmd/+/ack"):
                routes.subscribe(device, Subscription(f"fleet/meters/m{index}/{mine}", 1))
        routes.subscribe(session("backend"), Subscription("fleet/+/+/telemetry", 1))
        topics = [b"fleet/meters/m5/cmd/x", b"fleet/meters/m5/telemetry", b"fleet/meters/none/telemetry", b"other"]
        costs.append([lines_of(lambda: routes[topic]) for topic in topics])
        for node in every_node(routes._tree._root):
            node.children = CountingChildren(node.children)
        visits.append([nodes_visited(routes, topic.decode()) for topic in topics])
    assert costs[0] == costs[1]
    assert visits == [[8, 7, 6, 1]] * 2


class CountingChildren(dict[str, Any]):
    """The children of a node, which count how many nodes were asked."""

    asked = 0

    def get(self, level: str, default: Any = None) -> Any:
        CountingChildren.asked += level == "#"  # Each node that a match visits is asked for "#", once.
        return super().get(level, default)


def nodes_visited(routes: Routes, topic_name: str) -> int:
    """Return how many nodes of the tree, each with `CountingChildren`, a match of *topic_name* looks into."""
    CountingChildren.asked = 0
    routes._tree.nodes(topic_name)
    return CountingChildren.asked


def test_what_wildcards_remember_is_bounded() -> None:
    routes = Routes(50)
    listener = session("listener")
    routes.subscribe(listener, Subscription("a/#", 0))
    routes.subscribe(session("other"), Subscription("+/+/x", 0))
    for number in range(2000):  # Names that come and are made stale at once never fill the cache.
        assert routes[b"a/%d/x" % number].topics
        routes.subscribe(listener, Subscription("a/+/x", 0))
        routes.unsubscribe(listener, "a/+/x")
        remembered = sum(map(len, (name for node in every_node(routes._tree._root) for name in node._names or ())))
        assert remembered <= router._REMEMBERED_BYTES * 50
        assert len(routes) <= 50


def every_node(node: Any) -> list[Any]:
    return [node, *(below for child in node.children.values() for below in every_node(child))]


def test_many_names_whose_routes_are_stale_are_taken_out_of_their_files_by_and_by() -> None:
    """All at once, a service that subscribes to everything would hold the loop for a second, at 200,000 names."""

    class Counting(cached.CachedNames):
        removed = 0

        def remove(self, topic: bytes) -> None:
            self.removed += 1
            super().remove(topic)

    routes, names = Routes(100_000), [b"fleet/meters/m%d/state" % number for number in range(1_000)]
    routes._cached = files = Counting()
    listener = session("listener")
    for each in [*names, *(b"other/%d" % number for number in range(2_000))]:
        assert not routes[each].subscribers
    routes.subscribe(listener, Subscription("fleet/+/+/state", 0))
    assert len(routes) == 2_000
    assert files.removed <= 100
    assert all(routes[each].subscribers == (listener,) for each in names[:500])
    for number in range(1_000):
        assert not routes[b"new/%d" % number].subscribers
    assert len(files) == len(routes) == 3_500, "those with a route are filed, and no others"
    routes.unsubscribe(listener, "fleet/+/+/state")
    assert not any(routes[each].subscribers for each in names)


def test_of_a_cache_that_is_mostly_stale_nothing_is_searched_for() -> None:
    routes, listener = Routes(100_000), session("listener")
    for number in range(6_000):
        assert not routes[b"fleet/meters/m%d/state" % number].subscribers
    cost = lines_of(lambda: routes.subscribe(listener, Subscription("fleet/#", 0)))
    assert cost < 2 * 6_000, "each is looked at once, and not forgotten one by one"
    assert len(routes) == 0
    assert routes[b"fleet/meters/m1/state"].subscribers == (listener,)


def test_forgotten_routes_are_freed_by_and_by() -> None:
    routes = Routes(1_000)
    for number in range(1_000):
        routes.subscribe(session(f"m{number}"), Subscription(f"fleet/m{number}/cmd", 0))
        assert routes[b"fleet/m%d/cmd" % number].subscribers
    assert routes[b"one/more"].subscribers == ()
    assert len(routes) == 1
    left = [sum(map(len, routes._gone))]
    for number in range(600):
        assert not routes[b"new/%d" % number].subscribers
        left.append(sum(map(len, routes._gone)))
    assert max(before - after for before, after in pairwise(left)) <= 10
    assert left[0] > 900
    assert left[-1] == 0
