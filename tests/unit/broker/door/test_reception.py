"""Who is served, who waits, who goes: real sockets and a real lobby, its turns and its clock in the test's hand."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from broker.admission.refusal import RefusalCode
from broker.door import reception
from broker.door.crowd import PATIENCE, Crowd
from broker.door.lobby import Lobby
from broker.door.reception import Address, Reception
from broker.door.strangers import Source
from broker.settings.limits import Limits
from broker.sockets.poller import READABLE, Poller
from broker.sockets.turn import Turn
from tests.support.watched import WatchedClient
from tests.support.wire import MemoryBroker

seen_in_python = pytest.mark.skipif(
    not reception.__file__.endswith(".py"), reason="compiled code calls compiled code past what a test puts there"
)


class Caller:
    """One who has connected: *ours* is what the broker accepted."""

    def __init__(self, host: str, number: int) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.address = (host, number)

    @property
    def closed(self) -> bool:
        return self.ours.fileno() == -1


class Place(WatchedClient):
    """Who has been given a place."""

    def __init__(self, house: House, accepted: socket.socket, address: Address) -> None:
        super().__init__()
        self.end()
        self.ours = accepted
        self.descriptor = accepted.fileno()
        self.host = address[0]
        self.address = address
        self.told = ""
        self._house = house

    def abort(self, code: str = "ABORTED", detail: str = "") -> None:
        self.told = f"{code}: {detail}"
        self.leave()

    def leave(self) -> None:
        """Go, without having been admitted."""
        self._house.lobby.forget(self.descriptor)
        self.ours.close()

    def settle(self) -> None:
        """Be admitted."""
        self._house.lobby.settled(self.descriptor, self, READABLE, dozes=False)


class House:
    """A reception, with the lobby behind it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self.now = 1.0
        loop.time = lambda: self.now  # type: ignore[method-assign]
        self.limits = limits
        self.broker = MemoryBroker()
        turn = Turn(loop.call_soon)
        self.admitted = Poller(loop, turn)
        self.lobby = Lobby(loop, turn, self.admitted, lambda: self.limits)
        self.callers: list[Caller] = []
        self.places: dict[Address, Place] = {}
        self.reception = Reception(
            self.broker.engine,
            self.lobby,
            lambda: self.limits,
            lambda: len(self.admitted) + len(self.lobby) + len(self.lobby.waiting),
            self.lobby.waiting.gives_way,
            self._serve,
        )

    def _serve(self, accepted: socket.socket, address: Address) -> None:
        place = self.places[address] = Place(self, accepted, address)
        self.lobby.watch(place.descriptor, place, READABLE)

    def come(self, *hosts: str, turn: bool = True) -> list[str]:
        """Let one come from each of *hosts* in this turn, a new one or not; return what has become of each."""
        if turn:
            self.reception.begin_turn(32, self.now)
        came = []
        for host in hosts:
            caller = Caller(host, len(self.callers))
            self.callers.append(caller)
            served = self.reception.receive(caller.ours, caller.address, self.now)
            assert served is (caller.address in self.places)
            came.append(caller)
        return [self.state(each) for each in came]

    def state(self, caller: Caller) -> str:
        if caller.address in self.places:
            return "served"
        return "closed" if caller.closed else "waits"

    def states(self) -> list[str]:
        """Return what has become of everybody who came, in the order in which they came."""
        return [self.state(each) for each in self.callers]

    def place(self, number: int) -> Place:
        """Return that of the one who came as *number*."""
        return self.places[self.callers[number].address]

    def end(self) -> None:
        for poller in (self.lobby, self.admitted):
            poller.close()
        for each in self.callers:
            each.ours.close()
            each.theirs.close()


@pytest.fixture
def house() -> Iterator[House]:
    loop = asyncio.new_event_loop()
    made = House(loop, Limits(max_unadmitted=4, max_unadmitted_per_address=2))
    yield made
    made.end()
    loop.close()


def test_of_connections_that_have_not_said_whose_they_are_few_may_wait_where_there_are_few_descriptors(
    house: House,
) -> None:
    assert house.reception.most_unnamed == 4
    house.limits = Limits(max_unadmitted=1_000_000)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert 1 <= house.reception.most_unnamed <= soft // 2


def network(number: int) -> str:
    return f"10.0.{number}.1"


# Who waits


def test_who_is_from_an_address_that_has_its_places_waits_until_one_of_them_has_gone(house: House) -> None:
    assert house.come("10.0.1.1", "10.0.1.1", "10.0.1.1", "10.0.2.1") == ["served", "served", "waits", "served"]
    house.place(3).leave()
    house.reception.begin_turn(32, house.now)
    assert house.states()[2] == "waits", "a place of another address is none of his"
    house.place(0).settle()
    house.reception.begin_turn(32, house.now)
    assert house.states()[2] == "served"
    assert house.broker.metrics.refused == {}


def test_when_all_places_are_taken_who_comes_waits_and_has_the_next_that_is_free(house: House) -> None:
    house.come(*map(network, range(4)))
    assert house.come(network(5), network(6)) == ["waits", "waits"]
    house.place(2).settle()
    assert house.come(network(7)) == ["waits"], "who came first has it"
    assert house.states()[4:] == ["served", "waits", "waits"]


def test_a_turn_serves_so_many_of_those_who_wait_and_nobody_overtakes_the_others(house: House) -> None:
    """All places are free at once, as after a deadline of strangers: more than one turn gives."""
    house.come(*map(network, range(4)))
    house.come(*[network(number) for number in range(10, 14)])
    for number in range(4):
        house.place(number).leave()
    house.reception.begin_turn(2, house.now)
    assert house.come(network(20), turn=False) == ["waits"]
    house.reception.begin_turn(2, house.now)
    assert house.states()[4:] == ["served"] * 4 + ["waits"], "he comes behind those who waited before him"
    house.place(4).leave()
    house.reception.begin_turn(1, house.now)
    house.place(5).leave()
    assert house.come(network(21), turn=False) == ["served"], "nobody waits any more"


def test_those_who_wait_for_their_own_address_hold_up_nobody_from_elsewhere(house: House) -> None:
    house.come(*["10.0.1.1"] * 6)
    assert house.come("10.0.2.1", "10.0.2.2") == ["served", "served"]
    assert house.states()[:6] == ["served"] * 2 + ["waits"] * 4


def test_after_a_turn_that_left_nobody_who_may_have_a_place_newcomers_have_theirs(house: House) -> None:
    house.come(*["10.0.1.1"] * 4)
    house.place(0).leave()
    house.reception.begin_turn(1, house.now)
    assert house.come("10.0.2.1", turn=False) == ["waits"], "nobody has asked yet whether the others may"
    assert house.come("10.0.3.1") == ["served"]
    assert house.states() == ["served", "served", "served", "waits", "served", "served"]


# Who makes room


def test_a_newcomer_has_the_place_of_one_of_whom_there_are_too_many(house: House) -> None:
    house.limits = Limits(max_unadmitted=4, max_unadmitted_per_address=4)
    house.come(*["10.0.1.1"] * 4)
    assert house.come("10.0.2.1") == ["served"]
    assert house.place(0).told == f"{RefusalCode.RATE_LIMITED}: all connections are in use, most by this network"
    assert [house.place(number).told for number in (1, 2, 3)] == [""] * 3
    assert len(house.lobby) == 4


def test_whose_places_they_are_is_asked_anew_each_turn(house: House) -> None:
    house.limits = Limits(max_unadmitted=4, max_unadmitted_per_address=4)
    house.come(*["10.0.1.1"] * 4)
    assert house.come("10.0.2.1", "10.0.2.1", "10.0.2.1") == ["served", "served", "waits"]
    house.place(2).settle()
    assert house.come("10.0.3.1") == ["served"]
    assert [number for number in range(6) if house.place(number).told] == [0, 1, 4]


def test_an_address_with_all_its_places_has_nobody_put_out(house: House) -> None:
    house.limits = Limits(max_unadmitted=6, max_unadmitted_per_address=2)
    house.come("10.0.2.1", "10.0.2.1", *["10.0.1.1"] * 2, *["10.0.1.2"] * 2)
    assert house.come("10.0.2.1") == ["waits"]
    assert not any(house.place(number).told for number in range(6))
    house.now += PATIENCE
    house.reception.begin_turn(32, house.now)
    assert house.states()[6] == "waits", "nor for one who has waited"
    assert not any(house.place(number).told for number in range(6))


def test_nobody_who_waits_has_the_place_of_another_who_would_be_as_badly_off_then(house: House) -> None:
    house.limits = Limits(max_unadmitted=6, max_unadmitted_per_address=4)
    house.come(*["10.0.1.1"] * 3, *["10.0.1.2"] * 3)
    house.come("10.0.1.2", "10.0.1.1")
    house.now += PATIENCE / 2
    house.reception.begin_turn(32, house.now)
    assert house.states()[6:] == ["waits", "waits"]
    assert not any(house.place(number).told for number in range(6))


def test_who_waits_has_the_place_of_one_who_is_late_though_nobody_else_comes(house: House) -> None:
    house.limits = Limits(max_unadmitted=80, max_unadmitted_per_address=2)
    house.come(*[network(number) for number in range(40) for _ in range(2)])
    assert house.come(network(50), network(51), network(50)) == ["waits"] * 3
    house.now += PATIENCE / 2
    house.reception.begin_turn(32, house.now)
    assert house.states()[80:] == ["waits"] * 3
    house.now += PATIENCE / 2
    house.reception.begin_turn(32, house.now)
    assert house.states()[80:] == ["served", "served", "waits"], "networks have one each, and the others as many"
    assert [number for number in range(80) if house.place(number).told] == [0, 2]
    assert house.come(network(60)) == ["served"], "who comes now is asked for at once"


@seen_in_python
def test_of_a_network_that_can_have_no_place_not_every_address_is_asked_about(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attacker's thousand networks, ten addresses of each waiting, took 20 ms of a turn four times a second."""
    house.limits = Limits(max_unadmitted=80, max_unadmitted_per_address=2)
    house.come(*[network(number) for number in range(40) for _ in range(2)])
    house.come(*[f"10.0.{number}.{host}" for number in range(40) for host in range(2, 7)])
    asked: list[Source] = []
    makes_room = Crowd.makes_room

    def noted(crowd: Crowd, source: Source) -> int | None:
        asked.append(source)
        return makes_room(crowd, source)

    monkeypatch.setattr(Crowd, "makes_room", noted)
    house.now += PATIENCE
    house.reception.begin_turn(32, house.now)
    assert house.states()[80:] == ["waits"] * 200, "each network has two places, and so has everybody"
    assert not asked
    assert house.come("10.0.50.1") == ["served"]
    assert len(asked) == 1


@seen_in_python
def test_whose_place_those_who_wait_may_have_is_looked_for_a_few_times_a_second(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0

    def crowd(_lobby: Lobby) -> Crowd:
        nonlocal looked
        looked += 1
        return Crowd({}, house.now)

    house.come(*map(network, range(5)))
    monkeypatch.setattr(Lobby, "crowd", crowd)
    for _ in range(100):
        house.now += 0.01
        house.reception.begin_turn(32, house.now)
    assert 3 <= looked <= 5


# Who is turned away


def test_when_too_many_wait_who_came_last_of_the_network_with_most_is_turned_away(house: House) -> None:
    house.limits = Limits(max_unadmitted=2, max_unadmitted_per_address=2)
    with capture_logs() as logs:
        house.come("10.0.1.1", "10.0.1.2", *["10.0.1.1"] * 9, "10.0.3.1", "10.0.4.1", "10.0.5.1")
    states = house.states()
    assert states.count("waits") == 5 * 2
    assert states[10] == "closed", "so the last of those who are many goes"
    assert states[11:] == ["served", "waits", "waits"], "one network each has a place, and the others wait for one"
    assert house.broker.metrics.refused == {RefusalCode.RATE_LIMITED: 1}
    (told,) = logs
    assert (told["code"], told["address"]) == (RefusalCode.RATE_LIMITED, "10.0.1.1")
    assert told["detail"] == "too many connections wait, most of them from 10.0.1.0/24"


def test_so_many_wait_as_there_are_descriptors_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (12, 12))
    loop = asyncio.new_event_loop()
    house = House(loop, Limits(max_unadmitted=4, max_unadmitted_per_address=1))
    assert house.come(*["10.0.1.1"] * 5) == ["served"] + ["waits"] * 3 + ["closed"]
    house.end()
    loop.close()


def test_at_the_limit_of_connections_one_who_waits_goes_for_a_newcomer_and_else_the_newcomer(house: House) -> None:
    house.limits = replace(house.limits, max_connections=4)
    assert house.come("10.0.1.1", "10.0.1.1", "10.0.1.1") == ["served", "served", "waits"]
    assert house.come("10.0.2.1", "10.0.3.1", "10.0.4.1") == ["served", "served", "closed"]
    assert house.states()[2] == "closed"
    assert house.broker.metrics.refused == {RefusalCode.TOO_MANY_CONNECTIONS: 2}
    happened = house.broker.engine.history.strangers("10.0.1.1")
    assert [each.code for each in happened] == [RefusalCode.TOO_MANY_CONNECTIONS]


def test_whose_connections_have_led_to_nothing_is_closed_and_told_of_once_a_minute(house: House) -> None:
    house.limits = replace(house.limits, max_failed_attempts=3, failed_attempt_recovery=0.001)
    for number in range(3):
        house.come("10.0.1.1")
        house.place(number).leave()
    with capture_logs() as logs:
        assert house.come("10.0.1.1", "10.0.1.1", "10.0.2.1") == ["closed", "closed", "served"]
        house.now += 61
        assert house.come("10.0.1.1") == ["closed"]
    assert [each["detail"] for each in logs] == ["3 connections from this address were not admitted"] * 2
    assert house.broker.metrics.refused == {RefusalCode.RATE_LIMITED: 3}


def test_those_who_are_admitted_have_led_to_something(house: House) -> None:
    house.limits = replace(house.limits, max_failed_attempts=3, failed_attempt_recovery=0.001)
    for number in range(9):
        assert house.come("10.0.1.1") == ["served"]
        house.place(number).settle()


def test_it_is_full_when_nobody_can_even_wait(house: House) -> None:
    house.limits = Limits(max_unadmitted=2, max_unadmitted_per_address=1)
    house.come(*map(network, range(11)))
    full = [house.reception.full]
    house.come(network(12))
    full.append(house.reception.full)
    house.place(0).leave()
    full.append(house.reception.full)
    assert full == [False, True, False], "one may wait still; no more; a place is free"
