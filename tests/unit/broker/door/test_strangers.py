"""Newcomers by address: what uses an allowance up, what gives it back, and what counts as one address."""

from __future__ import annotations

import socket

import pytest

from broker.door.connection_rate import ConnectionRate
from broker.door.strangers import ADDRESSES_OF_NETWORK, Network, Source, Strangers
from broker.door.waiting_room import Waiting, WaitingRoom
from broker.settings.limits import Limits

LIMITS = Limits(max_failed_attempts=5, failed_attempt_recovery=0.5)


def a_source() -> Source:
    return Source(Network("192.0.2.0/24", 0.0), 0.0)


def come_and_go(source: Source, now: float, *, admitted: bool) -> None:
    source.arrive(LIMITS, now)
    source.leave(admitted=admitted)


def test_those_who_are_admitted_use_nothing_up() -> None:
    source = a_source()
    for _ in range(1000):
        assert source.refuses(LIMITS, 0.0) is None
        come_and_go(source, 0.0, admitted=True)
    assert source.failures(LIMITS, 0.0) == 0


def test_those_who_are_not_use_the_allowance_up_and_are_forgotten_in_time() -> None:
    source = a_source()
    for _ in range(5):
        assert source.refuses(LIMITS, 0.0) is None
        come_and_go(source, 0.0, admitted=False)
    assert source.refuses(LIMITS, 0.0) == "5 connections from this address were not admitted"
    assert source.refuses(LIMITS, 1.9) is not None
    assert source.refuses(LIMITS, 2.1) is None
    assert source.failures(LIMITS, 1000.0) == 0


def test_what_is_forgotten_goes_by_the_time_that_has_passed_and_not_by_how_often_somebody_asks() -> None:
    """Also on a clock that did not begin at nought: the event loop's never does."""
    source = Source(Network("192.0.2.0/24", 1000.0), 1000.0)
    for _ in range(5):
        assert source.refuses(LIMITS, 1000.0) is None
        come_and_go(source, 1000.0, admitted=False)
    assert [source.refuses(LIMITS, 1001.0) is None for _ in range(5)] == [False] * 5
    assert source.refuses(LIMITS, 1001.9) is not None
    assert source.refuses(LIMITS, 1002.1) is None


def test_who_is_admitted_gives_back_what_it_took_and_nothing_of_what_others_did() -> None:
    source = a_source()
    for _ in range(3):
        come_and_go(source, 0.0, admitted=False)
    for _ in range(10):
        come_and_go(source, 0.0, admitted=True)
    assert source.failures(LIMITS, 0.0) == source.network.failures(LIMITS, 0.0) == 3


def test_a_network_has_the_allowance_of_some_addresses_however_many_it_has() -> None:
    strangers = Strangers(0.0)
    sources = [strangers.source(f"2001:db8:1:{subnet:x}::1", LIMITS, 0.0) for subnet in range(50)]
    other = strangers.source("2001:db8:2::1", LIMITS, 0.0)
    for source in sources[: 5 * ADDRESSES_OF_NETWORK]:
        assert source.refuses(LIMITS, 0.0) is None
        come_and_go(source, 0.0, admitted=False)
    assert sources[-1].refuses(LIMITS, 0.0) == "20 connections from 2001:db8:1::/48 were not admitted"
    assert other.refuses(LIMITS, 0.0) is None
    assert sources[-1].refuses(LIMITS, 1.0) is None, "it recovers as so many addresses do"
    for _ in range(1000):
        come_and_go(other, 0.0, admitted=True)
    assert other.refuses(LIMITS, 0.0) is None


def test_who_is_under_way_is_not_forgotten_before_it_is_known_what_becomes_of_it() -> None:
    source = a_source()
    for _ in range(2):
        source.arrive(LIMITS, 0.0)
    assert source.failures(LIMITS, 1000.0) == 2
    for _ in range(2):
        source.leave(admitted=True)
    assert source.failures(LIMITS, 1000.0) == 0


def test_a_network_is_known_as_long_as_one_of_its_addresses() -> None:
    strangers = Strangers(0.0)
    waits = strangers.source("192.0.2.1", LIMITS, 0.0)
    waits.arrive(LIMITS, 0.0)
    strangers.source("192.0.2.2", LIMITS, 20.0)
    assert strangers.source("192.0.2.3", LIMITS, 40.0).network is waits.network
    waits.leave(admitted=True)
    strangers.source("198.51.100.1", LIMITS, 60.0)
    assert strangers.source("192.0.2.4", LIMITS, 60.0).network is not waits.network


def test_who_has_failures_left_is_not_forgotten_with_those_who_have_none() -> None:
    limits = Limits(max_failed_attempts=50, failed_attempt_recovery=0.5)
    strangers = Strangers(1000.0)
    failing = strangers.source("192.0.2.1", limits, 1000.0)
    for _ in range(6):
        come_and_go(failing, 1000.0, admitted=False)
    strangers.source("198.51.100.1", limits, 1010.9)
    assert strangers.source("192.0.2.1", limits, 1010.9) is failing
    assert failing.failures(limits, 1010.9) == pytest.approx(0.55)


def test_a_network_has_its_failures_when_all_addresses_that_made_them_are_forgotten() -> None:
    """Else a few from each of very many addresses would never count."""
    strangers = Strangers(1000.0)
    limits = Limits(max_failed_attempts=50, failed_attempt_recovery=0.5)
    for number in range(11):
        source = strangers.source(f"192.0.2.{number}", limits, 1000.0)
        for _ in range(2):
            come_and_go(source, 1000.0, admitted=False)
    strangers.source("198.51.100.1", limits, 1010.9)
    assert len(strangers) == 1
    network = strangers.source("192.0.2.99", limits, 1010.9).network
    assert network is source.network
    assert network.failures(limits, 1010.9) == pytest.approx(22 - 21.8)


def test_addresses_are_looked_through_now_and_then_and_not_for_each_who_comes() -> None:
    strangers = Strangers(1000.0)
    strangers.source("192.0.2.1", LIMITS, 1020.0)
    idle = strangers.source("192.0.2.2", LIMITS, 1020.1)
    strangers.source("192.0.2.3", LIMITS, 1029.0)
    assert strangers.source("192.0.2.2", LIMITS, 1029.0) is idle
    strangers.source("192.0.2.3", LIMITS, 1031.0)
    assert strangers.source("192.0.2.2", LIMITS, 1031.0) is not idle


def test_who_has_very_many_addresses_makes_nobody_wait_until_all_were_looked_at() -> None:
    strangers = Strangers(0.0)
    hosts = [f"2001:db8:{number:x}::1" for number in range(1000)]
    known = [strangers.source(host, LIMITS, 0.0).network for host in hosts]
    strangers.source("192.0.2.1", LIMITS, 20.0).arrive(LIMITS, 20.0)
    assert len(strangers) > 900
    for _ in range(200):
        strangers.source("192.0.2.1", LIMITS, 20.0)
    assert len(strangers) == 1
    again = [strangers.source(host, LIMITS, 20.0).network for host in hosts]
    assert not any(before is after for before, after in zip(known, again, strict=True))


def test_addresses_are_forgotten_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.door.strangers._MOST", 10)
    strangers = Strangers(0.0)
    failing = strangers.source("failing", LIMITS, 0.0)
    come_and_go(failing, 0.0, admitted=False)
    for number in range(9):
        come_and_go(strangers.source(f"good-{number}", LIMITS, 0.0), 0.0, admitted=True)
    others = strangers.source("one-more", LIMITS, 0.0)
    assert strangers.source("another", LIMITS, 0.0) is others
    for _ in range(5):
        assert others.refuses(LIMITS, 0.0) is None
        come_and_go(others, 0.0, admitted=False)
    assert others.refuses(LIMITS, 0.0) is not None
    assert len(strangers) == 10
    assert strangers.source("failing", LIMITS, 1.0) is failing
    strangers.source("later", LIMITS, 20.0)
    assert len(strangers) == 1


def test_a_rate_is_kept_and_a_second_of_it_may_come_at_once() -> None:
    rate = ConnectionRate(0.0)
    assert rate.available(10.0, 0.0) == 1
    assert rate.available(10.0, 100.0) == 10
    for _ in range(10):
        rate.take()
    assert rate.available(10.0, 100.0) == 0
    assert rate.pause(10.0) == pytest.approx(0.1)
    assert rate.available(10.0, 100.11) == 1


def test_an_address_is_known_as_long_as_somebody_from_there_waits_for_a_place() -> None:
    """Else it would have places without end: those that it takes would count for another of its name."""
    strangers, room = Strangers(0.0), WaitingRoom()
    source = strangers.source("192.0.2.1", LIMITS, 0.0)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        room.add(Waiting(ours, ("192.0.2.1", 1), source), 1)
        assert strangers.source("192.0.2.1", LIMITS, 100.0) is source
        assert strangers.source("192.0.2.2", LIMITS, 100.0).network is source.network
        assert room.next(lambda _source: True) is not None
        assert strangers.source("192.0.2.1", LIMITS, 200.0) is not source
