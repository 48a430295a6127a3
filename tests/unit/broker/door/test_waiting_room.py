"""Who waits for a place: whose turn it is, and who is turned away when too many wait."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from broker.door.strangers import Source, Strangers
from broker.door.waiting_room import Waiting, WaitingRoom
from broker.settings.limits import Limits

LIMITS = Limits()


class Hall:
    """A waiting room, and the addresses of those in it."""

    def __init__(self, most: int) -> None:
        self.room = WaitingRoom()
        self.strangers = Strangers(0.0)
        self._most = most
        self._ends: list[socket.socket] = []

    def come(self, *hosts: str) -> list[str]:
        """Return the addresses of those who are turned away for them."""
        gone = []
        for host in hosts:
            ours, theirs = socket.socketpair()
            self._ends += [ours, theirs]
            waiting = Waiting(ours, (host, len(self._ends) // 2), self.strangers.source(host, LIMITS, 0.0))
            away = self.room.add(waiting, self._most)
            gone += [] if away is None else [f"{away.address[0]}:{away.address[1]}"]
        return gone

    def called(self, barred: str = "") -> list[str]:
        """Return the addresses of all who wait, in the order of their turns; nobody at *barred* may have a place."""

        def may(source: Source) -> bool:
            return not barred or source is not self.strangers.source(barred, LIMITS, 0.0)

        order = []
        while (waiting := self.room.next(may)) is not None:
            order.append(f"{waiting.address[0]}:{waiting.address[1]}")
        return order

    def end(self) -> None:
        for each in self._ends:
            each.close()


@pytest.fixture
def hall() -> Iterator[Hall]:
    made = Hall(6)
    yield made
    made.end()


def test_networks_come_by_turns_and_in_a_network_addresses(hall: Hall) -> None:
    hall.come("10.0.1.1", "10.0.1.1", "10.0.1.1", "10.0.1.2", "10.0.2.1")
    assert len(hall.room) == 5
    assert hall.called() == ["10.0.1.1:1", "10.0.2.1:5", "10.0.1.2:4", "10.0.1.1:2", "10.0.1.1:3"]
    assert len(hall.room) == 0


def test_who_may_have_no_place_holds_nobody_up(hall: Hall) -> None:
    hall.come("10.0.1.1", "10.0.1.1", "10.0.1.2", "10.0.2.1")
    assert hall.called(barred="10.0.1.1") == ["10.0.1.2:3", "10.0.2.1:4"]
    assert hall.called() == ["10.0.1.1:1", "10.0.1.1:2"]


def test_a_full_room_turns_away_the_last_of_the_network_with_most(hall: Hall) -> None:
    assert hall.come(*["10.0.1.1"] * 4, "10.0.1.2", "10.0.2.1") == []
    assert hall.come("10.0.1.3") == ["10.0.1.3:7"], "its network has most"
    assert hall.come("10.0.2.1", "10.0.3.1") == ["10.0.1.1:4", "10.0.1.1:3"]
    assert len(hall.room) == 6


def test_where_nobody_has_many_a_full_room_says_so(hall: Hall) -> None:
    hall.come(*[f"10.0.{network}.1" for network in range(5)])
    assert not hall.room.is_full(6)
    hall.come("10.0.9.1")
    assert hall.room.is_full(6)
    assert not hall.room.is_full(7)


def test_a_full_room_of_one_network_has_an_ear_for_others(hall: Hall) -> None:
    hall.come(*["10.0.1.1"] * 6)
    assert not hall.room.is_full(6)


def test_all_are_turned_away_at_the_end(hall: Hall) -> None:
    hall.come("10.0.1.1", "10.0.2.1")
    hall.room.close()
    assert len(hall.room) == 0
    assert all(each.fileno() == -1 for each in hall._ends[::2])
