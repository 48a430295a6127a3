"""Who goes when somebody comes for whom there is no place: one of too many, and nobody else."""

from __future__ import annotations

from random import Random

from broker.door.crowd import PATIENCE, SHARES, Crowd
from broker.door.ranking import Ranking
from broker.door.strangers import Network, Source


class Town:
    """Places, numbered in the order in which they were taken."""

    def __init__(self) -> None:
        self.networks: dict[str, Network] = {}
        self.sources: dict[str, Source] = {}
        self.places: dict[int, tuple[Source, float]] = {}
        self.now = 0.0
        self._came = 0

    def source(self, address: str) -> Source:
        """Return the address *address*, as network and host: ``a.1``."""
        if address not in self.sources:
            name = address.partition(".")[0]
            network = self.networks.setdefault(name, Network(name, 0.0))
            self.sources[address] = Source(network, 0.0)
        return self.sources[address]

    def come(self, address: str, times: int = 1) -> None:
        """Let so many from *address* take places."""
        for _ in range(times):
            self.places[self._came] = self.source(address), self.now
            self._came += 1

    def crowd(self) -> Crowd:
        """Return whose the places are now."""
        return Crowd(self.places, self.now)

    def whose(self, crowd: Crowd, address: str) -> str | None:
        """Return the address of whoever goes for a newcomer from *address*."""
        descriptor = crowd.makes_room(self.source(address))
        if descriptor is None:
            return None
        gone, _ = self.places.pop(descriptor)
        return next(name for name, source in self.sources.items() if source is gone)


def test_the_oldest_of_the_network_with_most_goes_until_both_have_the_same() -> None:
    town = Town()
    town.come("b.1", 20)
    town.come("a.1", 44)
    crowd = town.crowd()
    assert crowd.makes_room(town.source("c.1")) == 20
    assert [town.whose(crowd, "b.1") for _ in range(13)] == ["a.1"] * 11 + [None] * 2
    assert town.whose(crowd, "a.1") is None, "they have the same number"


def test_nobody_goes_as_long_as_no_network_has_more_than_its_share() -> None:
    town = Town()
    for name in range(SHARES):
        town.come(f"n{name}.1", 3)
    assert town.crowd().makes_room(town.source("new.1")) is None
    town.come("n7.1")
    crowd = town.crowd()
    assert town.whose(crowd, "new.1") == "n7.1"
    assert town.whose(crowd, "new.1") is None


def test_a_network_of_many_addresses_is_one() -> None:
    town = Town()
    for host in range(64):
        town.come(f"a.{host}")
    assert town.whose(town.crowd(), "b.1") == "a.0"


def test_in_a_network_that_has_more_than_its_share_an_address_makes_room_for_another() -> None:
    town = Town()
    town.come("a.1", 3)
    town.come("a.2", 40)
    crowd = town.crowd()
    assert town.whose(crowd, "a.3") == "a.2"
    assert town.whose(crowd, "a.2") is None


def test_between_addresses_of_a_network_that_has_more_than_its_share_the_difference_must_be_two_too() -> None:
    for has, others, gone in ((20, 21, 0), (20, 22, 1), (3, 40, 18)):
        town = Town()
        town.come("a.1", has)
        town.come("a.2", others)
        crowd = town.crowd()
        came = [town.whose(crowd, "a.1") for _ in range(gone + 5)]
        assert came == ["a.2"] * gone + [None] * 5, "who has come in this moment is counted"


def test_a_fleet_that_is_alone_loses_nobody() -> None:
    town = Town()
    town.come("a.1", 64)
    assert town.crowd().makes_room(town.source("a.1")) is None


def test_who_has_come_in_the_same_moment_is_not_put_out_for_the_next_from_there() -> None:
    """He is not among the places that were looked through: where there are few, a network had its share in one turn."""
    town = Town()
    town.come("a.1", 20)
    crowd = town.crowd()
    assert [town.whose(crowd, "b.1") for _ in range(12)] == ["a.1"] * 10 + [None] * 2
    assert town.whose(crowd, "b.2") is None


def test_a_network_whose_places_are_of_this_moment_has_none_to_give() -> None:
    town = Town()
    town.come("a.1", 1)
    town.come("b.1", 7)
    crowd = town.crowd()
    gone = [town.whose(crowd, f"{each}.1") for each in "aaccdde"]
    assert gone == ["b.1"] * 4 + ["a.1"] + ["b.1"] + [None]


# Who is late


def test_where_no_network_has_too_many_the_oldest_of_that_with_most_who_are_late_goes() -> None:
    town = Town()
    for _ in range(3):
        for name in range(200):
            town.come(f"n{name}.1")
    assert town.whose(town.crowd(), "new.1") is None
    town.now = PATIENCE - 0.1
    assert town.whose(town.crowd(), "new.1") is None
    town.now = PATIENCE
    town.come("n8.1")
    crowd = town.crowd()
    assert [town.whose(crowd, "new.1") for _ in range(3)] == ["n0.1", "n1.1", None], "then he would have as many"
    assert [town.whose(crowd, f"other{number}.1") for number in range(3)] == ["n2.1", "n3.1", "n4.1"]
    assert town.whose(crowd, "n8.1") is None


def test_who_keeps_a_network_full_of_new_ones_does_not_stand_before_those_who_are_late() -> None:
    town = Town()
    for _ in range(3):
        for name in range(200):
            town.come(f"n{name}.1")
    town.now = 2 * PATIENCE
    town.come("shield.1", 10)
    assert town.whose(town.crowd(), "new.1") == "n0.1"


def test_one_late_place_a_network_is_nobody_s_to_give() -> None:
    """As many networks as places: none has more than another."""
    town = Town()
    for name in range(200):
        town.come(f"n{name}.1")
    town.now = 10 * PATIENCE
    crowd = town.crowd()
    assert not crowd.may_make_room
    assert town.whose(crowd, "new.1") is None


def test_who_has_too_many_goes_first_late_or_not_and_nobody_goes_twice() -> None:
    town = Town()
    town.come("a.1", 2)
    for name in range(40):
        town.come(f"n{name}.1", 2)
    town.now = PATIENCE
    town.come("a.1", 2)
    crowd = town.crowd()
    assert crowd.may_make_room
    assert [town.whose(crowd, f"x{number}.1") for number in range(4)] == ["a.1", "a.1", "n0.1", "n1.1"]
    gone = {town.whose(crowd, f"y{number}.1") for number in range(38)}
    assert gone == {f"n{number}.1" for number in range(2, 40)}
    assert town.whose(crowd, "z.1") is None


def test_after_the_oldest_the_next_of_its_network_goes_from_whatever_address() -> None:
    town = Town()
    for host in range(3):
        for name in range(33):
            town.come(f"n{name}.{host}")
    town.now = PATIENCE
    crowd = town.crowd()
    assert [town.whose(crowd, f"x{number}.1") for number in range(33)] == [f"n{number}.0" for number in range(33)]
    assert [town.whose(crowd, f"y{number}.1") for number in range(33)] == [f"n{number}.1" for number in range(33)]
    assert town.whose(crowd, "z.1") is None


def test_what_is_said_of_a_network_is_true_of_its_addresses() -> None:
    """Of many towns, with networks that have too many or not, late or not: nobody is passed over who would get one."""
    random, yes, no = Random(160), 0, 0
    for _ in range(60):
        town = Town()
        for moment in (0.0, PATIENCE):
            town.now = moment
            for _ in range(random.randrange(1, 60)):
                town.come(f"n{random.randrange(random.choice((2, 60)))}.{random.randrange(3)}", random.randrange(1, 4))
        crowd = town.crowd()
        for number in range(60):
            source = town.source(f"n{number}.{random.randrange(3)}")
            said, anybody = crowd.may_make_room_for(source.network), crowd.may_make_room
            if crowd.makes_room(source) is not None:
                assert said
                assert anybody
                yes += 1
            else:
                no += not said
    assert min(yes, no) > 100


# Who has most


def test_of_those_who_have_most_the_one_is_named_who_had_as_many_first() -> None:
    """As a slow one says, which looks through all of them."""
    random, ranking = Random(7), Ranking({"a": 2, "b": 2})
    counts, since = {"a": 2, "b": 2}, {"a": 0, "b": 1}
    for moment in range(2, 3000):
        key = random.choice("abcdef")
        if counts.get(key) and random.random() < (0.4 if moment < 2000 else 0.9):
            ranking.take(key)
            counts[key] -= 1
        else:
            ranking.add(key)
            counts[key] = counts.get(key, 0) + 1
        since[key] = moment
        there = [each for each in counts if counts[each]]
        first = min(there, key=lambda each: (-counts[each], since[each]), default=None)
        assert ranking.first() == first
        assert ranking.of(key) == counts[key]
