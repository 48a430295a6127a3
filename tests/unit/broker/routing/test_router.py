"""Routes: what a topic leads to, and which of them a change forgets."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

from broker.mqtt.errors import MalformedPacket
from broker.mqtt.message import Message
from broker.mqtt.subscription import Subscription, encode_identifier
from broker.routing.cached import CachedNames
from broker.routing.router import LONGEST_CACHED, Routes
from broker.sockets.rounds import VERY_MANY


class Subscriber:
    """A subscriber that notes what it is given; *slow* asks for the publisher to be held."""

    def __init__(self, *, v5: bool = False, takes_shared_frames: bool = True, slow: bool = False) -> None:
        self.outbox: list[bytes] = []
        self.v5 = v5
        self.takes_shared_frames = takes_shared_frames
        self.slow = slow
        self.given: list[tuple[Message, Subscription]] = []

    def deliver(self, message: Message, subscription: Subscription, _now: float) -> bool:
        self.given.append((message, subscription))
        return self.slow

    def deliver_reliably(self, _message: Message, _now: float) -> bool:
        return self.slow

    def hold(self, publisher: Any, now: float) -> bool:
        raise AssertionError(publisher, now)

    def give_up(self) -> None: ...
    def flush(self) -> None: ...


def test_subscribers_are_sorted_by_what_they_need() -> None:
    routes = Routes(10)
    old, new = Subscriber(), Subscriber(v5=True)
    reliable, small = Subscriber(v5=True), Subscriber(takes_shared_frames=False)
    named, shy = Subscriber(v5=True), Subscriber(v5=True)
    certain = Subscriber()
    routes.subscribe(old, Subscription("a", 0))
    routes.subscribe(new, Subscription("a", 0))
    routes.subscribe(reliable, Subscription("a", 1))
    routes.subscribe(small, Subscription("a", 0))
    routes.subscribe(named, Subscription("a", 0, identifiers=encode_identifier(1)))
    routes.subscribe(shy, Subscription("a", 0, no_local=True))
    routes.subscribe(certain, Subscription("a", 2))
    route = routes[b"a"]
    assert route.appends_v4 == (old.outbox.append, certain.outbox.append)
    assert route.appends_v5 == (new.outbox.append, reliable.outbox.append)
    assert route.reliable == (reliable, certain)
    assert (route.best_effort_v4, route.best_effort_v5) == ((old.outbox.append,), (new.outbox.append,))
    assert [subscriber for subscriber, _ in route.individual] == [small, named, shy]
    assert route.subscribers == (old, new, reliable, small, named, shy, certain)


def test_the_slow_one_among_many_is_named() -> None:
    routes = Routes(10)
    quick, slow = Subscriber(takes_shared_frames=False), Subscriber(takes_shared_frames=False, slow=True)
    for subscriber in (quick, slow, Subscriber()):
        routes.subscribe(subscriber, Subscription("a", 1))
    assert routes[b"a"].deliver(Message(b"a", b""), None, 0.0) is slow
    assert routes[b"a"].deliver_individually(Message(b"a", b""), None, 0.0) is slow
    routes.unsubscribe(slow, "a")
    assert routes[b"a"].deliver(Message(b"a", b""), None, 0.0) is None


def test_a_change_forgets_the_routes_that_it_matches_and_no_other() -> None:
    routes = Routes(10)
    kept, gone = routes[b"a/x"], routes[b"b/x"]
    subscriber = Subscriber()
    routes.subscribe(subscriber, Subscription("b/#", 0))
    assert routes[b"a/x"] is kept
    assert routes[b"b/x"] is not gone
    again = routes[b"b/x"]
    assert not routes.unsubscribe(subscriber, "b/+")
    assert routes[b"b/x"] is again
    assert routes.unsubscribe(subscriber, "b/#")
    assert routes[b"b/x"].subscribers == ()


def test_a_long_name_has_its_route_and_is_not_kept() -> None:
    routes = Routes(10)
    subscriber = Subscriber()
    routes.subscribe(subscriber, Subscription("a/#", 0))
    longest, longer = b"a/" + b"x" * (LONGEST_CACHED - 2), b"a/" + b"x" * (LONGEST_CACHED - 1)
    assert routes[longest].subscribers == routes[longer].subscribers == (subscriber,)
    assert set(routes) == {longest}
    routes.unsubscribe(subscriber, "a/#")
    assert routes[longest].subscribers == routes[longer].subscribers == ()


def test_the_words_of_cached_names_are_bounded_too() -> None:
    # A client chooses how many levels a name has, and another word for each of them.
    routes = Routes(100)
    most = 0
    for number in range(50):
        assert routes["/".join(f"{number}-{level}" for level in range(60)).encode()].subscribers == ()
        most = max(most, routes._cached.words)
    assert most <= 4 * 100 + 60
    assert len(routes) < 10


def test_what_cached_names_take_is_bounded_whatever_characters_they_are_of() -> None:
    # One emoji among 490 letters makes four bytes of each of them.
    routes, most = Routes(2_000), 0
    tracemalloc.start()
    try:
        for number in range(2_500):
            assert routes[f"fleet/n/{number:06}{'x' * 480}\U0001f600".encode()].subscribers == ()
            most = max(most, tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert most < 2_000 * 1_280 * 1.5, "4.5 KB for each route that may be kept, once"


def test_usual_names_are_all_kept() -> None:
    routes = Routes(1_000)
    for number in range(1_000):
        assert routes[f"spBv1.0/north/DDATA/gateway-{number // 10:04}/meter-{number:06}".encode()].topics
    assert len(routes) == 1_000


def test_names_that_come_and_go_are_reckoned_alike() -> None:
    names = CachedNames()
    for name in ("a/b", "a/c", "ä/\U0001f600"):
        names.insert(name.encode())
    for name in ("a/c", "ä/\U0001f600", "a/b", "x/y"):
        names.remove(name.encode())
    assert (names.bytes, names.words) == (0, 0)


def test_the_cache_is_bounded_and_stays_right() -> None:
    routes = Routes(3)
    subscriber = Subscriber()
    routes.subscribe(subscriber, Subscription("t/+", 0))
    for index in range(20):
        assert routes[b"t/%d" % index].subscribers == (subscriber,)
        assert len(routes) <= 3
    routes.unsubscribe(subscriber, "t/+")
    assert all(not routes[b"t/%d" % index].subscribers for index in range(20))


@pytest.mark.parametrize("topic", [b"", b"a/+", b"#", b"\xff", b"a\0b", b"\xed\xa0\x80"])
def test_what_is_no_topic_name_has_no_route(topic: bytes) -> None:
    routes = Routes(10)
    with pytest.raises(MalformedPacket):
        routes[topic]
    assert len(routes) == 0


def test_a_merged_subscription_takes_the_best_of_each() -> None:
    first = Subscription("a/#", 0, no_local=True, retain_as_published=True, identifiers=b"1")
    merged = first.merge(Subscription("a/b", 1, identifiers=b"2"))
    assert (merged.qos, merged.no_local, merged.retain_as_published, merged.identifiers) == (1, False, True, b"12")


def test_topics_of_the_same_filters_share_a_route_whatever_number_subscribes() -> None:
    """Dashboards that read the whole fleet: else each of 200,000 topics would have its own list of all of them."""
    routes = Routes(10_000)
    dashboards = [Subscriber(v5=True) for _ in range(100)]
    for dashboard in dashboards:
        routes.subscribe(dashboard, Subscription("fleet/#", 1))
    device = Subscriber()
    routes.subscribe(device, Subscription("fleet/a/command", 1))
    route = routes[b"fleet/a/state"]
    tracemalloc.start()
    try:
        for number in range(1_000):
            assert routes[b"fleet/%d/state" % number] is route
        assert tracemalloc.get_traced_memory()[0] < 2_000_000, "2 KB a topic"
    finally:
        tracemalloc.stop()
    assert route.topics == 1_001
    assert routes[b"fleet/a/command"].subscribers == (*dashboards, device)
    routes.unsubscribe(dashboards[0], "fleet/#")
    assert routes[b"fleet/7/state"].subscribers == tuple(dashboards[1:])


def test_the_subscribers_of_all_routes_are_bounded() -> None:
    """Each device listens to its own topic, and a hundred dashboards to all: no two topics have the same filters."""
    routes, most = Routes(10_000), 0
    for _ in range(100):
        routes.subscribe(Subscriber(), Subscription("fleet/#", 0))
    for number in range(2_500):
        own = Subscriber()
        routes.subscribe(own, Subscription(f"fleet/{number}", 0))
        assert own in routes[b"fleet/%d" % number].subscribers
        assert routes._held == sum(len(each.recipients) for each in routes._shared.values())
        most = max(most, routes._held)
    assert 90_000 < most <= 100_000 + 101
    for number in range(2_400, 2_500):
        routes.subscribe(Subscriber(), Subscription(f"fleet/{number}", 0))
    assert routes._held == sum(len(each.recipients) for each in routes._shared.values())


def test_a_long_name_finds_the_route_that_others_have() -> None:
    routes, subscriber = Routes(10), Subscriber()
    routes.subscribe(subscriber, Subscription("a/#", 0))
    longer = b"a/" + b"x" * LONGEST_CACHED
    assert routes[longer] is not routes[longer]
    assert routes[longer] is not routes[b"a/b"]
    assert routes[longer] is routes[b"a/b"]
    assert routes[b"a/b"].topics == 1


@pytest.mark.parametrize("end", ["unsubscribe", "clear", "long"])
def test_the_route_to_very_many_is_kept_and_forgotten_like_others(end: str) -> None:
    routes = Routes(4)
    many = [Subscriber() for _ in range(VERY_MANY + 1)]
    for subscriber in many:
        routes.subscribe(subscriber, Subscription("a/#", 0))
    route = routes[b"a/b"]
    assert route.is_wide
    assert (len(routes), routes[b"a/b"], routes[b"a/c"]) == (0, route, route)
    assert route.subscribers == tuple(many)
    if end == "unsubscribe":
        routes.unsubscribe(many[0], "a/#")
        assert not routes.many
        assert routes[b"a/b"].subscribers == tuple(many[1:])
        assert set(routes) == {b"a/b"}
    elif end == "clear":
        for number in range(20):
            assert routes[b"a/%d" % number].subscribers == tuple(many)
            assert len(routes.many) <= 4
    else:
        assert routes[b"a/" + b"x" * LONGEST_CACHED].is_wide
        assert len(routes.many) == 2


def test_a_route_to_very_many_that_is_made_again_is_found_although_its_name_was_to_be_forgotten() -> None:
    """Names of stale routes are taken out of their files some at a time: it may have a route again by its turn."""
    routes = Routes(100_000)
    many, late = [Subscriber() for _ in range(VERY_MANY + 1)], Subscriber()
    for subscriber in many:
        routes.subscribe(subscriber, Subscription("x/5", 0))
    names = [b"x/5", *(b"x/n%d" % number for number in range(300))]
    assert sum(routes[name].is_wide for name in names) == 1
    routes.subscribe(late, Subscription("x/#", 0))  # All are stale.
    assert set(routes[b"x/5"].subscribers) == {*many, late}
    for number in range(300):
        assert not routes[b"other/%d" % number].subscribers
    last = Subscriber()
    routes.subscribe(last, Subscription("x/5", 0))
    assert set(routes[b"x/5"].subscribers) == {*many, late, last}
