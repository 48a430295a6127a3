"""The waiting room against a slow one that looks through everybody: the same order, and nobody else is turned away.

Where several have the same number, any of them may be the one who has most: then the slow one takes who was taken.
"""

from __future__ import annotations

import socket
import sys
from collections import Counter
from types import FrameType
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.door.ranking import Ranking
from broker.door.strangers import Network, Source
from broker.door.waiting_room import Waiting, WaitingRoom
from tests.support.examples import examples

PLACE = st.tuples(st.integers(0, 4), st.integers(0, 2))
"""A network, and an address in it."""
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("comes"), PLACE),
        st.tuples(st.just("gives way"), PLACE),
        st.tuples(st.just("next"), st.frozensets(PLACE, max_size=8)),
    ),
    max_size=60,
)


class SlowRoom:
    """Who waits, as a list: whose turn it is, and who has most, is found by looking through it."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, int, int]] = []
        """Of each: network, address, and a number of his own, in the order in which they came."""
        self._networks: list[int] = []
        self._addresses: list[tuple[int, int]] = []

    def comes(self, network: int, address: int, number: int) -> None:
        self.waiting.append((network, address, number))
        self._take_turns()

    def last_of_most(self, network: int) -> set[int]:
        """Return the numbers of those who may go for a newcomer from *network*; nobody if he is to go himself."""
        sizes = Counter(each[0] for each in self.waiting)
        if sizes[network] and sizes[network] * len(sizes) >= len(self.waiting):
            return set()
        found = set()
        for most in (each for each, size in sizes.items() if size == max(sizes.values())):
            addresses = Counter(each[1] for each in self.waiting if each[0] == most)
            for address in (each for each, size in addresses.items() if size == max(addresses.values())):
                found.add(max(each[2] for each in self.waiting if each[:2] == (most, address)))
        return found

    def goes(self, number: int) -> None:
        self.waiting = [each for each in self.waiting if each[2] != number]
        self._take_turns()

    def next(self, barred: frozenset[tuple[int, int]]) -> int | None:
        for network in self._networks:
            for place in self._addresses:
                if place[0] == network and place not in barred:
                    number = min(each[2] for each in self.waiting if each[:2] == place)
                    self._networks.remove(network)
                    self._addresses.remove(place)
                    self.goes(number)
                    return number
        return None

    def _take_turns(self) -> None:
        networks, addresses = [each[0] for each in self.waiting], [each[:2] for each in self.waiting]
        kept = [each for each in self._networks if each in networks]
        self._networks = kept + [each for each in dict.fromkeys(networks) if each not in kept]
        still = [each for each in self._addresses if each in addresses]
        self._addresses = still + [each for each in dict.fromkeys(addresses) if each not in still]


class Hall:
    """Both rooms, and the addresses."""

    def __init__(self) -> None:
        self.room, self.slow = WaitingRoom(), SlowRoom()
        networks = [Network(f"10.0.{number}.0/24", 0.0) for number in range(5)]
        self.sources = {(net, host): Source(networks[net], 0.0) for net in range(5) for host in range(3)}
        self._socket = socket.socket()
        self._came = 0

    def newcomer(self, place: tuple[int, int]) -> Waiting:
        self._came += 1
        return Waiting(self._socket, (f"10.0.{place[0]}.{place[1]}", self._came), self.sources[place])

    def comes(self, place: tuple[int, int], most: int) -> None:
        newcomer = self.newcomer(place)
        away = self.room.add(newcomer, most)
        if len(self.slow.waiting) >= most:
            may = self.slow.last_of_most(place[0])
            assert away is not None
            if not may:
                assert away is newcomer
                return
            assert away.address[1] in may
            self.slow.goes(away.address[1])
        else:
            assert away is None
        self.slow.comes(*place, self._came)

    def gives_way(self, place: tuple[int, int]) -> None:
        away = self.room.gives_way(self.sources[place])
        may = self.slow.last_of_most(place[0])
        assert (away is None) == (not may)
        if away is not None:
            assert away.address[1] in may
            self.slow.goes(away.address[1])

    def next(self, barred: frozenset[tuple[int, int]]) -> None:
        shut = {self.sources[each] for each in barred}
        found = self.room.next(lambda source: source not in shut)
        assert (None if found is None else found.address[1]) == self.slow.next(barred)

    def check(self) -> None:
        assert len(self.room) == len(self.slow.waiting)
        waiting = Counter(each[:2] for each in self.slow.waiting)
        assert {place: source.waiting for place, source in self.sources.items() if source.waiting} == waiting

    def close(self) -> None:
        self._socket.close()


@given(most=st.integers(1, 12), steps=STEPS)
@examples(120, of=300)
def test_it_does_what_a_slow_one_does(most: int, steps: list[tuple[str, Any]]) -> None:
    hall = Hall()
    try:
        for what, of in steps:
            if what == "comes":
                hall.comes(of, most)
            elif what == "gives way":
                hall.gives_way(of)
            else:
                hall.next(of)
            hall.check()
        while hall.slow.waiting:
            hall.next(frozenset())
        assert hall.room.next(lambda _: True) is None
    finally:
        hall.close()


@given(steps=st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=80))
def test_who_has_most_is_who_counting_says(steps: list[tuple[bool, int]]) -> None:
    ranking: Ranking[int] = Ranking()
    counts: Counter[int] = Counter()
    for more, key in steps:
        if more:
            ranking.add(key)
            counts[key] += 1
        elif counts[key]:
            ranking.take(key)
            counts[key] -= 1
        first = ranking.first()
        highest = max(counts.values(), default=0)
        assert (first is None) == (highest == 0)
        assert first is None or counts[first] == highest
        assert [ranking.of(each) for each in range(6)] == [counts[each] for each in range(6)]


def _lines_of_an_arrival(networks: int, addresses: int) -> int:
    """Return how many lines are run when somebody comes to a full room of so many networks, and addresses in one."""
    room, lines = WaitingRoom(), 0
    crowded = Network("crowded", 0.0)
    sources = [Source(Network(str(number), 0.0), 0.0) for number in range(networks)]
    sources += [Source(crowded, 0.0) for _ in range(addresses)]
    newcomer = Source(Network("newcomer", 0.0), 0.0)

    def trace(_frame: FrameType, _event: str, _argument: object) -> Any:
        nonlocal lines
        lines += 1
        return trace

    before = sys.gettrace()
    with socket.socket() as accepted:
        for source in sources:
            room.add(Waiting(accepted, ("192.0.2.1", 1), source), len(sources))
        sys.settrace(trace)
        try:
            away = room.add(Waiting(accepted, ("192.0.2.1", 1), newcomer), len(sources))
        finally:
            sys.settrace(before)
    assert away is not None
    assert away.source.network is crowded
    return lines


def test_an_arrival_costs_the_same_however_many_networks_and_addresses_wait() -> None:
    few = _lines_of_an_arrival(2, 4)
    assert _lines_of_an_arrival(500, 4) <= few
    assert _lines_of_an_arrival(2, 500) <= few
