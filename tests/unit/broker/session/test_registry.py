"""Sessions by role and client identifier, and when they are looked at again."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.metrics import Metrics
from broker.session import registry as registry_module
from broker.session.queue import QueueLimits
from broker.session.registry import SessionRegistry
from broker.session.session import Session
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from tests.support.examples import examples

DOMAIN = "fleet.internal"
METER = Identity(DOMAIN, Role.DEVICE, "meter-1", "meters")
SERVICE = Identity(DOMAIN, Role.SERVICE, "meter")


@pytest.fixture
def registry() -> SessionRegistry:
    return SessionRegistry(QueueLimits(1, 1), Metrics())


def test_a_name_is_one_thing_for_a_device_and_another_for_a_service(registry: SessionRegistry) -> None:
    device, service = registry.create("meter-1", METER), registry.create("meter-1", SERVICE)
    assert registry.find(DOMAIN, Role.DEVICE, "meter-1") is device
    assert registry.find(DOMAIN, Role.SERVICE, "meter-1") is service
    assert registry.find(DOMAIN, Role.OPERATOR, "meter-1") is None
    assert len(registry) == 2


def test_instances_are_those_beside_the_owners_own_name(registry: SessionRegistry) -> None:
    own = registry.create("meter", SERVICE)
    assert registry.instances(SERVICE) == 0
    sessions = [registry.create(f"meter-{index}", SERVICE) for index in range(3)]
    assert registry.instances(SERVICE) == 3
    registry.discard(own)
    assert registry.instances(SERVICE) == 3
    assert registry.all() == sessions
    for session in sessions:
        registry.discard(session)
        registry.discard(session)
    assert registry.instances(SERVICE) == 0


def test_of_parties_that_come_and_go_nothing_is_kept(registry: SessionRegistry) -> None:
    """A CA that is not limited to one domain may make up any number of domains and names."""
    for number in range(100):
        identity = Identity(f"domain-{number}", Role.SERVICE, "meter")
        for session in (
            registry.create("meter", identity),
            registry.create("meter-1", identity),
            registry.create("meter-2", identity, left=True),
        ):
            registry.schedule(session, float(number))
            registry.discard(session)
    assert (registry._sessions, registry._instances, registry._left, registry._schedule) == ({}, {}, set(), {})


def test_a_new_session_asks_whoever_is_asked_before_a_message_is_taken(registry: SessionRegistry) -> None:
    assert registry.create("meter-1", METER).permits is None
    registry.permits = lambda *_: True
    assert registry.create("meter-1", METER).permits is registry.permits


def test_discarding_an_older_session_of_the_name_keeps_the_new_one(registry: SessionRegistry) -> None:
    old = registry.create("meter-1", METER)
    registry.discard(old)
    new = registry.create("meter-1", METER)
    registry.discard(old)
    assert registry.find(DOMAIN, Role.DEVICE, "meter-1") is new


def test_a_session_is_due_once_at_its_earliest_time(registry: SessionRegistry) -> None:
    session = registry.create("meter-1", METER)
    for when in (30.0, 10.0, 20.0):
        registry.schedule(session, when)
    assert list(registry.due(9.9)) == []
    assert list(registry.due(10.0)) == [session]
    assert list(registry.due(100.0)) == []
    registry.schedule(session, 110.0)
    assert list(registry.due(110.0)) == [session]


def test_a_session_that_flaps_is_filed_once(registry: SessionRegistry) -> None:
    session = registry.create("meter-1", METER)
    for when in range(10, 1000):
        registry.schedule(session, float(when))
    assert len(registry._schedule) == 1


def test_a_discarded_session_is_not_due(registry: SessionRegistry) -> None:
    session = registry.create("meter-1", METER)
    registry.schedule(session, 10.0)
    registry.discard(session)
    registry.create("meter-1", METER)
    assert list(registry.due(100.0)) == []


def test_a_discarded_session_is_not_held_until_it_would_have_been_due(registry: SessionRegistry) -> None:
    for number in range(50):
        session = registry.create("meter-1", METER)
        for when in (900_000.0 + number, 600_000.0 + number):  # Its end, then a will that is to be sent before.
            registry.schedule(session, when)
        registry.discard(session)
    assert len(registry._schedule) == 0


def test_what_should_have_been_is_due_next(registry: SessionRegistry) -> None:
    late, later = registry.create("meter-1", METER), registry.create("meter-2", METER)
    assert list(registry.due(1000.5)) == []
    registry.schedule(late, 20.0)
    registry.schedule(later, 1000.9)
    assert list(registry.due(1000.6)) == [late]
    assert list(registry.due(1000.9)) == [later]


def test_after_a_long_sleep_all_are_due_whose_time_has_come(registry: SessionRegistry) -> None:
    sessions = [registry.create(f"meter-{number}", SERVICE) for number in range(3)]
    for session, when in zip(sessions, (7_000_000.5, 70.0, 7_000_000.6), strict=True):
        registry.schedule(session, when)
    assert list(registry.due(7_000_000.5)) == [sessions[1], sessions[0]]
    assert list(registry.due(7_000_001.0)) == [sessions[2]]


def test_a_session_is_due_as_it_stands_when_it_is_its_turn(registry: SessionRegistry) -> None:
    sessions = [registry.create(f"meter-{number}", SERVICE) for number in range(3)]
    for session in sessions:
        registry.schedule(session, 10.0)
    due = registry.due(10.0)
    assert next(due) is sessions[0]
    registry.discard(sessions[1])  # Between two of them.
    registry.schedule(sessions[0], 20.0)
    assert list(due) == [sessions[2]]
    assert list(registry.due(20.0)) == [sessions[0]]


def test_due_sessions_come_in_the_order_of_their_times(registry: SessionRegistry) -> None:
    for name, when in (("meter-b", 3.0), ("meter-c", 1.0), ("meter-a", 2.0), ("meter-d", 2.0)):
        registry.schedule(registry.create(name, SERVICE), when)
    assert [session.client_id for session in registry.due(9.0) if session] == [
        "meter-c",
        "meter-a",
        "meter-d",
        "meter-b",
    ]


@given(st.lists(st.floats(100.0, 103.0, width=32), max_size=12), st.sets(st.integers(0, 11)), st.floats(100.0, 103.5))
@examples(30)
def test_however_many_are_due_they_come_once_in_order_and_in_steps(
    times: list[float], gone: set[int], now: float
) -> None:
    registry = SessionRegistry(QueueLimits(10, 1000), Metrics())
    sessions = [registry.create(f"meter-{number}", SERVICE) for number in range(len(times))]
    for session, when in zip(sessions, times, strict=True):
        registry.schedule(session, when)
    came: list[Session] = []
    steps = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry_module, "_FILED_A_STEP", 3)
        for each in registry.due(now):
            if each is not None:
                came.append(each)
                continue
            steps += 1
            if steps == 1:  # In between others leave, or are due later than they were.
                for number in gone.intersection(range(len(times))).difference(map(sessions.index, came)):
                    registry.discard(sessions[number])
    left = gone if steps else set()
    due = [each for each, when in zip(sessions, times, strict=True) if when <= now]
    assert came == sorted(came, key=lambda each: times[sessions.index(each)])
    assert len(came) == len(set(came))
    assert {each for each in due if sessions.index(each) not in left} <= set(came) <= set(due)


def test_sessions_that_end_together_are_freed_one_by_one(registry: SessionRegistry) -> None:
    """Freeing ten thousand at once, when the last was looked at, would hold up everybody."""
    before = living()
    for number in range(100):
        registry.schedule(registry.create(f"meter-{number}", SERVICE), 1.5)
    for number, session in enumerate(filter(None, registry.due(2.0)), 1):
        registry.discard(session)
        assert living() - before <= 101 - number


def living() -> int:
    return sum(type(each) is Session for each in gc.get_objects())
