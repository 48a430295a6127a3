"""Who goes when somebody comes for whom there is no place: one of too many, and nobody else."""

from __future__ import annotations

from broker.crowd import SHARES, Crowd
from broker.strangers import Network, Source


class Town:
    """Places, numbered in the order in which they were taken."""

    def __init__(self) -> None:
        self.networks: dict[str, Network] = {}
        self.sources: dict[str, Source] = {}
        self.places: dict[int, Source] = {}

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
            self.places[len(self.places)] = self.source(address)

    def whose(self, crowd: Crowd, address: str) -> str | None:
        """Return the address of whoever goes for a newcomer from *address*."""
        descriptor = crowd.makes_room(self.source(address))
        if descriptor is None:
            return None
        gone = self.places.pop(descriptor)
        return next(name for name, source in self.sources.items() if source is gone)


def test_the_oldest_of_the_network_with_most_goes_until_both_have_the_same() -> None:
    town = Town()
    town.come("b.1", 20)
    town.come("a.1", 44)
    crowd = Crowd(town.places)
    assert crowd.makes_room(town.source("c.1")) == 20
    assert [town.whose(crowd, "b.1") for _ in range(13)] == ["a.1"] * 11 + [None] * 2
    assert town.whose(crowd, "a.1") is None, "they have the same number"


def test_nobody_goes_as_long_as_no_network_has_more_than_its_share() -> None:
    town = Town()
    for name in range(SHARES):
        town.come(f"n{name}.1", 3)
    assert Crowd(town.places).makes_room(town.source("new.1")) is None
    town.come("n7.1")
    crowd = Crowd(town.places)
    assert town.whose(crowd, "new.1") == "n7.1"
    assert town.whose(crowd, "new.1") is None


def test_a_network_of_many_addresses_is_one() -> None:
    town = Town()
    for host in range(64):
        town.come(f"a.{host}")
    assert town.whose(Crowd(town.places), "b.1") == "a.0"


def test_in_a_network_that_has_more_than_its_share_an_address_makes_room_for_another() -> None:
    town = Town()
    town.come("a.1", 3)
    town.come("a.2", 40)
    crowd = Crowd(town.places)
    assert town.whose(crowd, "a.3") == "a.2"
    assert town.whose(crowd, "a.2") is None


def test_a_fleet_that_is_alone_loses_nobody() -> None:
    town = Town()
    town.come("a.1", 64)
    assert Crowd(town.places).makes_room(town.source("a.1")) is None


def test_who_has_come_in_the_same_moment_is_not_put_out_for_the_next_from_there() -> None:
    """He is not among the places that were looked through: where there are few, a network had its share in one turn."""
    town = Town()
    town.come("a.1", 20)
    crowd = Crowd(town.places)
    assert [town.whose(crowd, "b.1") for _ in range(12)] == ["a.1"] * 10 + [None] * 2
    assert town.whose(crowd, "b.2") is None


def test_a_network_whose_places_are_of_this_moment_has_none_to_give() -> None:
    town = Town()
    town.come("a.1", 1)
    town.come("b.1", 7)
    crowd = Crowd(town.places)
    gone = [town.whose(crowd, f"{each}.1") for each in "aaccdde"]
    assert gone == ["b.1"] * 4 + ["a.1"] + ["b.1"] + [None]
