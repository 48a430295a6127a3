"""Places for connections: who makes room for whom."""

from __future__ import annotations

import socket

import pytest

from provisioning.connections import places as places_module
from provisioning.connections.places import KnownAddresses, Place, Places, hang_up


class Crowd:
    """Connections that come, by name."""

    def __init__(self, most: int) -> None:
        self.places = Places(most)
        self.cut: list[str] = []
        self.held: dict[str, Place] = {}

    def come(self, *names: str, host: str) -> bool:
        """Whether all of *names* find a place."""
        for name in names:
            place = self.places.take(host, lambda name=name: self.cut.append(name))  # type: ignore[misc]
            if place is None:
                return False
            self.held[name] = place
        return True


def test_nobody_makes_room_while_there_is_some() -> None:
    crowd = Crowd(4)
    assert crowd.come("a", "b", host="192.0.2.1")
    assert crowd.come("c", "d", host="198.51.100.1")
    assert (crowd.cut, len(crowd.places)) == ([], 4)


def test_an_address_has_half_and_crowds_out_itself_the_longest_silent_first() -> None:
    crowd = Crowd(8)
    assert crowd.come("a", "b", "c", "d", host="192.0.2.1")
    crowd.held["a"].asks()
    crowd.held["a"].silent()  # It was answered: it is the newest of the silent now.
    assert crowd.come("e", "f", "g", host="192.0.2.1")
    assert crowd.cut == ["b", "c", "d"]
    assert crowd.come("x", "y", host="192.0.2.2")
    assert (crowd.cut, len(crowd.places)) == (["b", "c", "d"], 6)
    assert crowd.come("h", host="192.0.2.1")
    assert crowd.cut[3:] == ["a"]
    assert crowd.places.lost == 4


def test_when_all_are_taken_the_longest_silent_of_all_goes() -> None:
    crowd = Crowd(4)
    crowd.come("a", "b", host="192.0.2.1")
    crowd.come("c", "d", host="198.51.100.1")
    assert crowd.come("e", host="203.0.113.1")
    assert (crowd.cut, len(crowd.places), crowd.places.lost) == (["a"], 4, 1)


def test_who_is_being_answered_keeps_his_place() -> None:
    crowd = Crowd(4)
    crowd.come("a", "b", host="192.0.2.1")
    for name in "ab":
        crowd.held[name].asks()
    assert not crowd.come("c", host="192.0.2.1"), "its address has half"
    crowd.come("d", "e", host="198.51.100.1")
    crowd.held["d"].asks()
    assert crowd.come("f", host="203.0.113.1")
    assert (crowd.cut, crowd.places.turned_away) == (["e"], 1)
    crowd.held["f"].asks()
    assert not crowd.come("g", host="203.0.113.2"), "all are"
    assert crowd.places.turned_away == 2


def test_who_says_anything_is_silent_from_then_on() -> None:
    crowd = Crowd(4)
    crowd.come("a", "b", host="192.0.2.1")
    crowd.come("c", "d", host="198.51.100.1")
    for name in "ac":
        crowd.held[name].silent()
    assert crowd.come("e", host="198.51.100.1"), "for its own address"
    assert crowd.come("f", host="203.0.113.1"), "for all"
    assert crowd.cut == ["d", "b"]


def test_an_address_counts_as_often_as_it_is_there() -> None:
    crowd = Crowd(4)
    crowd.come("a", "b", host="192.0.2.1")
    crowd.held["a"].asks()
    crowd.held["a"].leave()  # In the middle of its answer.
    assert crowd.come("c", host="192.0.2.1")
    assert crowd.cut == []
    assert crowd.come("d", host="192.0.2.1")
    assert (crowd.cut, len(crowd.places)) == (["b"], 2)
    for name in "cd":
        crowd.held[name].leave()
    assert not crowd.places._sources, "nothing is kept of who is gone"


def test_a_place_is_given_back_once() -> None:
    crowd = Crowd(2)
    crowd.come("a", host="192.0.2.1")
    crowd.come("b", host="192.0.2.1")
    assert crowd.cut == ["a"]
    for name in "aabb":
        crowd.held[name].leave()
        crowd.held[name].asks()
        crowd.held[name].silent()
    assert len(crowd.places) == 0
    assert crowd.come("c", host="192.0.2.1")
    assert crowd.come("d", host="192.0.2.2")
    assert crowd.cut == ["a"]


def test_an_ipv6_subscriber_is_one_address() -> None:
    crowd = Crowd(4)
    crowd.come("a", host="2001:db8::1")
    crowd.come("b", host="2001:db8::2")
    crowd.come("c", host="2001:db8:0:1::1")
    assert crowd.come("d", host="2001:db8::3")
    assert crowd.cut == ["a"]


def test_a_network_has_three_quarters_and_crowds_out_itself() -> None:
    crowd = Crowd(8)
    for number, name in enumerate("abcdef"):
        assert crowd.come(name, host=f"2001:db8:1:{number}::1")
    assert (crowd.cut, len(crowd.places)) == ([], 6)
    assert crowd.come("g", host="2001:db8:1:99::1")
    assert crowd.cut == ["a"]
    assert crowd.come("x", "y", host="2001:db8:2::1")
    assert (crowd.cut, len(crowd.places)) == (["a"], 8)
    crowd.held["b"].leave()
    assert crowd.come("h", host="2001:db8:1::1")
    assert crowd.cut == ["a"], "it has three quarters again"


def test_three_quarters_are_three_quarters_of_however_many_there_are() -> None:
    for most, of_a_network in ((4, 3), (8, 6), (12, 9), (200, 150)):
        crowd = Crowd(most)
        for number in range(most):
            crowd.come(str(number), host=f"2001:db8:1:{number}::1")
        assert len(crowd.places) == of_a_network


def test_whose_place_is_lost_is_hung_up_on_both_ways_if_he_is_still_there() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        hang_up(ours)
        assert (ours.recv(1), theirs.recv(1)) == (b"", b"")
    hang_up(ours)


def test_where_an_operator_was_answered_strangers_make_room_first() -> None:
    crowd, hosts = Crowd(4), ("192.0.2.1", "192.0.2.2", "198.51.100.1", "198.51.100.2")
    for name, host in zip("abcd", hosts, strict=True):
        assert crowd.come(name, host=host)
    crowd.held["a"].vouch("anna")
    crowd.held["a"].leave()
    assert crowd.come("e", host="192.0.2.1")
    assert crowd.held["e"].address in crowd.places.known
    assert b"192.0.2.2" not in crowd.places.known
    strangers = [str(number) for number in range(8)]
    for number, name in enumerate(strangers):
        assert crowd.come(name, host=f"203.0.{number}.7")
    assert crowd.cut == ["b", "c", "d", *strangers[:5]]
    for name in strangers[5:]:
        crowd.held[name].asks()
    assert crowd.come("f", host="198.18.0.1"), "when there are no others"
    assert crowd.cut[-1] == "e"


def test_who_has_shown_nothing_for_longest_is_known_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places_module, "_MOST_KNOWN", 2)
    known = KnownAddresses()
    for key in (b"a", b"b", b"a", b"c"):
        known.add(key, "anna")
    assert [key in known for key in (b"a", b"b", b"c")] == [True, False, True]


def test_one_party_makes_few_addresses_known_and_no_others_unknown() -> None:
    known = KnownAddresses()
    known.add(b"0", "anna")
    for number in range(1000):
        known.add(b"%d" % number, "thief")
    every = [number for number in range(1000) if b"%d" % number in known]
    assert every == [0, *range(1000 - places_module.MOST_OF_ONE, 1000)], "anna's, and the thief's latest"
    known.add(b"999", "anna")
    for number in range(places_module.MOST_OF_ONE):
        known.add(b"%d" % number, "thief")
    assert b"999" in known, "there anna was answered, too"
    assert b"998" not in known
