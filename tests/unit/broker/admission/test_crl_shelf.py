"""Which list is held, which one gives way to which, and how fresh what is known is."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from broker.admission.crl_shelf import CrlShelf
from broker.admission.proven_time import ProvenTime
from provisioning.pki.crl import CrlProblem, CrlRefused, Scope, parse
from provisioning.pki.revocation import RevocationIndex
from tests.support.crl import crl, scope
from tests.support.examples import examples
from tests.support.pki import shared_pki

PKI = shared_pki()
CA = PKI.issuing
KEY = b"issuing"
SHARD = "http://pki.example/1.crl"
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
EXPIRED: dict[str, Any] = {"age": 2 * HOUR, "life": HOUR}
REMOVE = x509.ReasonFlags.remove_from_crl


class Shelf:
    """A shelf that is given lists in DER, as of now."""

    def __init__(self) -> None:
        self.index = RevocationIndex()
        self.proven = ProvenTime()
        self.shelf = CrlShelf(self.index, self.proven)
        self.now = datetime.now(UTC)

    def put(self, der: bytes) -> tuple[AbstractSet[int], int] | None:
        held = self.shelf.prepare(parse(der), (KEY, "CA"), "file", self.now, lambda: None)
        return None if held is None else self.shelf.put(held)

    def refused(self, der: bytes) -> CrlProblem:
        with pytest.raises(CrlRefused) as caught:
            self.put(der)
        return caught.value.code

    def contradiction(self, der: bytes) -> str:
        found = self.shelf.contradiction(KEY, parse(der), self.now)
        return "" if found is None else str(found)

    def overdue(self, *names: str, later: timedelta = timedelta(0), is_authority: bool = False) -> float | None:
        return self.shelf.overdue(KEY, self.now + later, is_authority=is_authority, names=frozenset(names))

    @property
    def revoked(self) -> set[int]:
        return {serial for serial in range(20) if self.index.find((KEY, serial)) is not None}


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


def test_a_newer_list_replaces_the_older_one_whole(shelf: Shelf) -> None:
    assert shelf.put(crl(CA, {1: None, 2: None}, number=1)) == ({1, 2}, 0)
    assert shelf.put(crl(CA, {2: None, 3: None}, number=2)) == ({3}, 1)
    assert shelf.revoked == {2, 3}


@given(st.lists(st.dictionaries(st.integers(1, 8), st.none()), min_size=2, max_size=4), st.booleans())
@examples(20)
def test_who_is_new_on_a_list_is_known_when_it_is_installed(lists: list[dict[int, None]], together: bool) -> None:
    """Found out outside the event loop, unless what it replaces was replaced meanwhile."""
    shelf = Shelf()
    held = [
        shelf.shelf.prepare(parse(crl(CA, entries, number=number)), (KEY, "CA"), "file", shelf.now, lambda: None)
        for number, entries in enumerate(lists, 1)
    ]
    before = set[int]()
    for number, entries in enumerate(lists, 1):
        each = held[number - 1]
        if not together:
            each = shelf.shelf.prepare(
                parse(crl(CA, entries, number=number)), (KEY, "CA"), "file", shelf.now, lambda: None
            )
        assert each is not None
        added, released = shelf.shelf.put(each)
        assert (added, released) == (entries.keys() - before, len(before - entries.keys()))
        assert together or added is each.added
        before = set(entries)
        assert shelf.revoked == before


def test_the_same_list_is_no_news(shelf: Shelf) -> None:
    same = crl(CA, {1: None})
    shelf.put(same)
    assert shelf.put(same) is None


@pytest.mark.parametrize("numbers", [(7, 8), (None, None)], ids=["numbered", "not numbered"])
def test_of_two_lists_that_nobody_can_order_each_revokes(shelf: Shelf, numbers: tuple[int | None, int | None]) -> None:
    """A CA that numbers no lists had revoked twice in one second: the second time nobody took notice."""
    number, next_number = numbers
    first = crl(CA, {1: None, 2: None}, number=number, now=shelf.now)
    second = crl(CA, {2: None, 3: None}, number=number, now=shelf.now)
    shelf.put(first)
    assert shelf.put(second) == ({3}, 0)
    assert shelf.revoked == {1, 2, 3}
    assert (shelf.put(first), shelf.put(second)) == (None, None), "both are known"
    shelf.put(crl(CA, {3: None}, number=next_number, age=timedelta(0), now=shelf.now))
    assert shelf.revoked == {3}


def test_of_two_lists_that_nobody_can_order_each_revokes_beside_a_later_delta(shelf: Shelf) -> None:
    shelf.put(crl(CA, {1: None, 2: None}, number=7, now=shelf.now))
    shelf.put(crl(CA, {2: REMOVE, 4: None}, number=8, base=7, now=shelf.now))
    shelf.put(crl(CA, {3: None}, number=7, now=shelf.now))
    assert shelf.revoked == {1, 3, 4}


def test_an_old_list_that_is_played_back_releases_nobody(shelf: Shelf) -> None:
    old = crl(CA, number=1)
    shelf.put(crl(CA, {1: None}, number=2))
    assert shelf.refused(old) is CrlProblem.CRL_OLDER
    assert shelf.revoked == {1}


@pytest.mark.parametrize("number", [500, None], ids=["numbered anew", "not numbered before"])
def test_where_number_and_date_contradict_each_other_both_lists_revoke(shelf: Shelf, number: int | None) -> None:
    """What a CA revoked after its data was restored did not count, and an older list played back released it again."""
    old = crl(CA, {1: None, 2: None}, number=number, now=shelf.now, age=HOUR / 2)
    new = crl(CA, {2: None, 3: None}, number=3, now=shelf.now)
    other = Shelf()
    for each, first, second, added in ((shelf, old, new, {3}), (other, new, old, {1})):
        each.put(first)
        assert ("CRL_OLDER" in each.contradiction(second), each.put(second)) == (True, (added, 0))
        assert each.revoked == {1, 2, 3}
        assert (each.put(second), "CRL_OLDER" in each.contradiction(second)) == (None, True), "it is known, and told"
    assert "made later" in shelf.contradiction(new)
    assert "made earlier" in other.contradiction(old)
    assert [each.fresh_until for each in shelf.shelf.held] == [parse(old).next_update], "what is in use lapses"
    ended = crl(CA, {4: None}, number=number, now=shelf.now, **EXPIRED)
    assert (other.refused(ended), other.contradiction(ended)) == (CrlProblem.CRL_EXPIRED, "")
    for later, age, revoked in ((4, 0, 3), (5, 4, 2)):  # The clocks of a CA's machines differ a little.
        newest = crl(CA, {revoked: None}, number=later, age=age * MINUTE, now=shelf.now)
        assert (other.contradiction(newest), other.put(newest) is None) == ("", False)
        assert other.revoked == {revoked}


def test_a_delta_whose_number_and_date_contradict_each_other_revokes_and_releases_nobody(shelf: Shelf) -> None:
    shelf.put(crl(CA, {1: None}, number=500, now=shelf.now, age=HOUR / 2))
    for delta, added in (({1: REMOVE, 2: None}, {2}), ({3: None}, {3})):
        new = crl(CA, delta, number=4, base=3, now=shelf.now)
        assert ("CRL_OLDER" in shelf.contradiction(new), shelf.put(new)) == (True, (added, 0))
        shelf.put(crl(CA, {}, number=501, base=500, now=shelf.now, age=MINUTE * 20))
    assert shelf.revoked == {1, 2, 3}
    assert shelf.put(crl(CA, {4: None}, number=4, base=3, now=shelf.now, age=MINUTE * 25)) is None, "simply older"


@pytest.mark.parametrize("behind", [0, 2, 90])
def test_an_old_list_with_a_higher_number_releases_nobody_while_the_clock_is_behind(shelf: Shelf, behind: int) -> None:
    """For as long the list in use was from the future, and its CA's clock taken for one that had been ahead."""
    true = shelf.now
    old = [crl(CA, {1: None}, number=each, now=true, age=(510 - each) * MINUTE, life=9 * HOUR) for each in (500, 503)]
    shelf.put(crl(CA, {2: None, 3: None}, number=3, now=true, age=timedelta(0)))
    shelf.now -= behind * MINUTE
    for each in old:
        assert "it releases nobody" in shelf.contradiction(each)
        shelf.put(each)
        assert shelf.revoked == {1, 2, 3}
    shelf.now = true + HOUR
    assert shelf.put(crl(CA, {3: None}, number=504, now=shelf.now, age=timedelta(0))) is not None
    assert shelf.revoked == {3}


def test_a_list_that_is_in_use_is_no_contradiction_when_it_is_read_again(shelf: Shelf) -> None:
    """It counted as an alarm at each poll."""
    base = crl(CA, {1: None}, number=500, now=shelf.now, age=HOUR / 2)
    delta = crl(CA, {2: None}, number=500, base=500, now=shelf.now, age=HOUR / 3)
    for each in (base, delta):
        shelf.put(each)
    assert (shelf.contradiction(base), shelf.contradiction(delta)) == ("", ""), "they have one number"
    assert shelf.put(crl(CA, {3: None}, number=4, base=3, now=shelf.now)) == ({3}, 0)
    assert (shelf.contradiction(base), shelf.contradiction(delta)) == ("", ""), "another one contradicts them"
    assert (shelf.put(base), shelf.put(delta), shelf.revoked) == (None, None, {1, 2, 3})


def test_nor_does_one_that_is_newer_than_the_list_in_use_and_older_than_one_that_contradicted_it(shelf: Shelf) -> None:
    for number, age, revoked, all_revoked in (
        (500, 50, {1, 2}, {1, 2}),
        (3, 10, {2}, {1, 2}),
        (501, 30, set(), {1, 2}),
    ):
        shelf.put(crl(CA, dict.fromkeys(revoked), number=number, now=shelf.now, age=age * MINUTE))
        assert shelf.revoked == all_revoked
    shelf.put(crl(CA, {7: None}, number=502, now=shelf.now))
    assert shelf.revoked == {7}


def test_nor_does_an_old_delta_nor_a_list_of_before_the_delta_in_use(shelf: Shelf) -> None:
    true = shelf.now
    shelf.put(crl(CA, {1: None}, number=3, now=true, age=HOUR))
    shelf.put(crl(CA, {2: None}, number=4, base=3, now=true, age=timedelta(0)))
    shelf.now -= 20 * MINUTE
    shelf.put(crl(CA, {1: REMOVE, 5: None}, number=500, base=3, now=true, age=HOUR / 2))
    assert shelf.revoked == {1, 2, 5}
    shelf.put(crl(CA, {1: REMOVE}, number=501, base=3, now=true, age=HOUR / 3))
    assert shelf.revoked == {1, 2, 5}
    shelf.put(crl(CA, {6: None}, number=502, now=true, age=HOUR / 4))
    assert shelf.revoked == {1, 2, 5, 6}
    shelf.now = true
    shelf.put(crl(CA, {7: None}, number=503, now=true, age=timedelta(0)))
    assert shelf.revoked == {7}


@pytest.mark.parametrize("number", [1, None], ids=["numbered", "not numbered"])
def test_a_list_from_a_clock_that_was_ahead_keeps_nobody_in(shelf: Shelf, number: int | None) -> None:
    """What its CA, which numbers its lists by the clock or not at all, revoked since was refused for as long."""
    ahead = shelf.now + timedelta(days=1)
    early = crl(CA, {1: None, 2: None}, number=number and 2, now=ahead, life=3 * HOUR)
    late = crl(CA, {2: None, 3: None}, number=number, now=shelf.now)
    present, shelf.now = shelf.now, ahead
    shelf.put(early)
    shelf.now = present
    assert shelf.put(late) == ({3}, 0)
    assert shelf.revoked == {1, 2, 3}, "the other one may be the later"
    assert shelf.put(late) is None, "it is known"
    assert shelf.put(crl(CA, {4: None}, number=number, now=shelf.now, age=HOUR / 2)) == ({4}, 0)
    assert shelf.refused(crl(CA, {5: None}, number=number, now=shelf.now, **EXPIRED)) is CrlProblem.CRL_OLDER
    assert shelf.proven.latest().at == parse(early).this_update.timestamp(), "it still says what has expired"
    shelf.now = ahead + MINUTE
    assert shelf.refused(late) is CrlProblem.CRL_OLDER
    assert shelf.put(crl(CA, {3: None}, number=number and 3, now=shelf.now)) == (set(), 3)
    assert shelf.revoked == {3}


def test_a_list_from_a_clock_that_was_ahead_keeps_nobody_in_by_its_delta(shelf: Shelf) -> None:
    present, shelf.now = shelf.now, shelf.now + timedelta(days=1)
    shelf.put(crl(CA, {1: None, 2: None}, number=7, now=shelf.now))
    shelf.put(crl(CA, {2: REMOVE, 4: None}, number=8, base=7, now=shelf.now))
    shelf.now = present
    assert shelf.put(crl(CA, {2: None, 3: None}, number=6, now=shelf.now)) == ({2, 3}, 0)
    assert shelf.revoked == {1, 2, 3, 4}


def test_a_delta_from_a_clock_that_was_ahead_keeps_nobody_in(shelf: Shelf) -> None:
    """It released who was revoked again later, and the deltas after it were taken for known, for as long."""
    present, shelf.now = shelf.now, shelf.now + timedelta(days=1)
    shelf.put(crl(CA, {1: None, 2: None}, number=7, now=present))
    shelf.put(crl(CA, {1: REMOVE, 4: None}, number=20, base=7, now=shelf.now))
    shelf.now = present
    late = crl(CA, {2: REMOVE, 3: None}, number=8, base=7, now=shelf.now)
    assert shelf.put(late) == ({3}, 0)
    assert shelf.revoked == {2, 3, 4}
    assert shelf.put(late) is None, "it is known"
    assert shelf.put(crl(CA, {5: None}, number=8, base=7, now=shelf.now, **EXPIRED)) is None
    assert shelf.put(crl(CA, {1: None}, number=9, now=shelf.now)) == ({1}, 0), "it was revoked again"
    assert shelf.revoked == {1, 2, 3, 4}
    older = crl(CA, {5: None}, number=8, base=7, now=shelf.now, life=30 * HOUR)
    shelf.now += timedelta(days=1, minutes=1)
    assert shelf.put(older) is None, "an older one that is played back"
    shelf.put(crl(CA, {1: None, 6: None}, number=10, now=shelf.now))
    assert shelf.revoked == {4, 6}


def test_a_delta_after_a_list_from_a_clock_that_was_ahead_keeps_nobody_in(shelf: Shelf) -> None:
    present, shelf.now = shelf.now, shelf.now + timedelta(days=1)
    shelf.put(crl(CA, {1: None}, number=20, now=shelf.now))
    shelf.now = present
    assert shelf.put(crl(CA, {1: REMOVE, 3: None}, number=8, base=7, now=shelf.now)) == ({3}, 0)
    after = crl(CA, {3: REMOVE, 4: None}, number=21, base=20, now=shelf.now)
    assert ("it releases nobody" in shelf.contradiction(after), shelf.put(after)) == (True, ({4}, 0))
    shelf.now += timedelta(days=1)
    assert shelf.put(crl(CA, {3: REMOVE}, number=22, base=20, now=shelf.now)) == (set(), 2)
    assert shelf.revoked == {1}


def test_an_expired_list_does_not_replace_a_good_one(shelf: Shelf) -> None:
    shelf.put(crl(CA, {1: None}, number=1))
    assert shelf.refused(crl(CA, {2: None}, number=2, **EXPIRED)) is CrlProblem.CRL_EXPIRED
    assert shelf.revoked == {1}


def test_an_expired_list_alone_still_says_who_is_revoked(shelf: Shelf) -> None:
    shelf.put(crl(CA, {1: None}, **EXPIRED))
    assert shelf.revoked == {1}
    assert shelf.overdue() == pytest.approx(3600, abs=5)


def test_a_list_from_the_future_is_refused(shelf: Shelf) -> None:
    assert shelf.refused(crl(CA, age=-HOUR)) is CrlProblem.CRL_NOT_YET_VALID
    assert shelf.refused(crl(CA, age=-timedelta(minutes=5, seconds=30))) is CrlProblem.CRL_NOT_YET_VALID
    assert shelf.put(crl(CA, age=-timedelta(minutes=4, seconds=30))) is not None, "clocks differ by minutes"


def test_a_delta_revokes_and_releases_and_makes_the_list_fresh(shelf: Shelf) -> None:
    shelf.put(crl(CA, {1: None, 2: x509.ReasonFlags.certificate_hold}, number=5))
    assert shelf.overdue(later=2 * HOUR) == pytest.approx(3660, abs=5)
    assert shelf.put(crl(CA, {2: REMOVE, 3: None}, number=6, base=4, life=3 * HOUR)) == ({3}, 1)
    assert shelf.revoked == {1, 3}
    assert shelf.overdue(later=2 * HOUR) == 0.0
    assert shelf.put(crl(CA, {1: REMOVE}, number=6, base=4, age=timedelta(minutes=2))) is None, "an older delta"


def test_the_same_delta_is_no_news(shelf: Shelf) -> None:
    shelf.put(crl(CA, {1: None}, number=5))
    same = crl(CA, {3: None}, number=6, base=5)
    assert shelf.put(same) == ({3}, 0)
    assert shelf.put(same) is None
    assert shelf.revoked == {1, 3}


def test_a_delta_without_its_list_is_refused(shelf: Shelf) -> None:
    assert shelf.refused(crl(CA, {1: None}, number=6, base=5)) is CrlProblem.CRL_NO_BASE
    shelf.put(crl(CA, number=4))
    assert shelf.refused(crl(CA, {1: None}, number=6, base=5)) is CrlProblem.CRL_NO_BASE


def test_a_complete_list_between_two_deltas_keeps_the_newer_delta(shelf: Shelf) -> None:
    shelf.put(crl(CA, {1: None}, number=5))
    shelf.put(crl(CA, {3: None}, number=7, base=5))
    shelf.put(crl(CA, {1: None, 2: None}, number=6))
    assert shelf.revoked == {1, 2, 3}
    assert [each.number for each in shelf.shelf.held] == [7]
    assert shelf.put(crl(CA, {3: REMOVE}, number=6, base=5)) is None, "an older delta that is played back"
    shelf.put(crl(CA, {1: None}, number=8))
    assert shelf.revoked == {1}


def test_an_expired_delta_is_refused(shelf: Shelf) -> None:
    shelf.put(crl(CA, number=5, age=3 * HOUR, life=9 * HOUR))
    assert shelf.refused(crl(CA, {1: None}, number=6, base=5, **EXPIRED)) is CrlProblem.CRL_EXPIRED


def test_a_shard_says_nothing_of_other_certificates(shelf: Shelf) -> None:
    assert shelf.overdue(SHARD) is None
    shelf.put(crl(CA, {1: None}, point=scope(SHARD, users_only=True)))
    assert shelf.overdue(SHARD) == 0.0
    assert shelf.overdue("http://pki.example/2.crl") is None
    assert shelf.overdue(SHARD, is_authority=True) is None
    shelf.put(crl(CA, {2: None}, number=1))
    assert shelf.overdue() == 0.0
    assert shelf.revoked == {1, 2}, "each list has its own entries"
    shelf.put(crl(CA, number=2))
    assert shelf.revoked == {1}


def test_of_several_lists_the_one_that_is_least_late_counts(shelf: Shelf) -> None:
    shelf.put(crl(CA, life=2 * HOUR, age=timedelta(0)))
    shelf.put(crl(CA, life=HOUR, age=timedelta(0), point=scope(SHARD, users_only=True)))
    shelf.put(crl(CA, life=HOUR, age=timedelta(0), point=scope(authorities_only=True)))
    assert shelf.overdue(SHARD, later=3 * HOUR) == pytest.approx(3600, abs=5)
    late = shelf.shelf.overdue_by_list(KEY, shelf.now + timedelta(minutes=90))
    assert sorted(late) == [0.0, pytest.approx(1800, abs=5)], "of lists about CAs nothing is said to clients"
    assert shelf.shelf.overdue_by_list(b"another", shelf.now) == []


def test_a_trial_puts_lists_aside_and_tells_nobody(shelf: Shelf) -> None:
    shelf.put(crl(CA, {1: None}, number=1))
    trial = shelf.shelf.trial()
    with pytest.raises(CrlRefused):
        trial.prepare(parse(crl(CA, number=0)), (KEY, "CA"), "trial", shelf.now, lambda: None)
    second = parse(crl(CA, {2: None}, number=2))  # Made once: its place is its number and its second.
    held = trial.prepare(second, (KEY, "CA"), "trial", shelf.now, lambda: None)
    assert held is not None
    trial.set_aside(held)
    assert trial.prepare(second, (KEY, "CA"), "trial", shelf.now, lambda: None) is None
    assert shelf.revoked == {1}
    assert [each.number for each in shelf.shelf.held] == [1]
    assert [each.number for each in trial.held] == [2]


def test_with_its_delta_a_list_is_as_new_as_that(shelf: Shelf) -> None:
    shelf.put(crl(CA, number=5, age=timedelta(minutes=30)))
    shelf.put(crl(CA, number=6, base=5, age=timedelta(minutes=3), life=3 * HOUR))
    (held,) = shelf.shelf.held
    assert held.delta is not None
    assert (held.number, held.this_update) == (6, held.delta.this_update)
    assert held.fresh_until == held.delta.next_update


def test_lateness_is_said_once_and_then_expiry_once(shelf: Shelf) -> None:
    shelf.put(crl(CA, age=timedelta(0)))

    def alarms(later: timedelta) -> list[CrlProblem]:
        return [problem for _, problem in shelf.shelf.alarms(shelf.now + later)]

    assert alarms(timedelta(minutes=44)) == []
    assert alarms(timedelta(minutes=46)) == [CrlProblem.CRL_LATE]
    assert alarms(timedelta(minutes=50)) == []
    assert alarms(timedelta(minutes=61)) == [CrlProblem.CRL_EXPIRED]
    assert alarms(timedelta(minutes=62)) == []
    assert alarms(timedelta(minutes=20)) == []
    for _ in range(2):
        assert alarms(timedelta(minutes=46)) == [CrlProblem.CRL_LATE], "the clock was set back: again"
        assert alarms(timedelta(minutes=20)) == []
    shelf.put(crl(CA, number=2, age=timedelta(0)))
    assert alarms(timedelta(minutes=46)) == [CrlProblem.CRL_LATE]
    shelf.put(crl(CA, number=3, age=timedelta(0)))
    assert alarms(timedelta(minutes=46)) == [CrlProblem.CRL_LATE], "of each list"
    for point in (None, scope(SHARD)):
        shelf.put(crl(CA, number=4, point=point, age=timedelta(0)))
    assert alarms(timedelta(minutes=46)) == [CrlProblem.CRL_LATE] * 2, "of each that is beside another"


def test_a_list_that_is_late_is_said_beside_one_that_is_not(shelf: Shelf) -> None:
    shelf.put(crl(CA, age=timedelta(0), life=9 * HOUR))
    shelf.put(crl(CA, age=timedelta(0), point=scope(SHARD)))
    ((late, problem),) = shelf.shelf.alarms(shelf.now + timedelta(minutes=46))
    assert (late, problem) == (shelf.shelf.held[1], CrlProblem.CRL_LATE)


def test_lists_go_on_when_the_clock_is_set_back(shelf: Shelf) -> None:
    """They were refused as not yet valid, and the last one before stayed fresh for as long as the clock was behind."""
    shelf.put(crl(CA, number=1))
    shelf.proven.passed(1000.0)
    shelf.now -= 24 * HOUR
    shelf.proven.passed(1600.0)
    assert shelf.put(crl(CA, {7: None}, number=2, age=-10 * MINUTE)) == ({7}, 0), "it is as old as it should be"
    assert shelf.refused(crl(CA, number=3, age=-25 * MINUTE)) is CrlProblem.CRL_NOT_YET_VALID


def test_a_list_is_overdue_when_it_has_been_held_for_so_long_whatever_the_clock_says(shelf: Shelf) -> None:
    shelf.put(crl(CA, life=HOUR, age=0 * HOUR))
    shelf.proven.passed(1000.0)
    shelf.now -= 24 * HOUR
    assert shelf.overdue() == 0
    shelf.proven.passed(1000.0 + 3600 + 90)
    assert shelf.overdue() == pytest.approx(90, abs=2)
    (late,) = shelf.shelf.overdue_by_list(KEY, shelf.now)
    assert late == pytest.approx(90, abs=2)
    assert [problem for _, problem in shelf.shelf.alarms(shelf.now)] == [CrlProblem.CRL_EXPIRED]


def test_a_list_of_a_time_when_all_clocks_were_ahead_gives_way(shelf: Shelf) -> None:
    """Judged by its own date the right one had expired, and every certificate of the CA that ends before had, too."""
    right, shelf.now = shelf.now, shelf.now + 730 * 24 * HOUR
    shelf.put(crl(CA, number=1, age=-730 * 24 * HOUR))
    shelf.now = right
    assert shelf.proven.at(right, [KEY]) > right + 729 * 24 * HOUR
    assert shelf.put(crl(CA, {7: None}, number=2)) == ({7}, 0)
    assert shelf.proven.at(right, [KEY]) == right


def test_a_ca_has_lists_of_so_many_scopes_and_what_it_had_before_stays(shelf: Shelf) -> None:
    """Each is asked about each of its certificates: with ever new ones a partner's CA would make everybody wait."""
    listed = parse(crl(CA, {1: None}))

    def put(number: int, *, newer: int = 0) -> None:
        of_them = Scope(frozenset({f"http://x/{number}"}))
        one = replace(listed, number=1 + newer, signed=listed.signed + bytes(newer), scope=of_them)
        held = shelf.shelf.prepare(one, (KEY, "CA"), "file", shelf.now, lambda: None)
        assert held is not None
        shelf.shelf.put(held)

    for number in range(1024):
        put(number)
    with pytest.raises(CrlRefused, match=r"CRL_UNSUPPORTED.*restart the broker"):
        put(1024)
    put(1023, newer=1)
    assert shelf.shelf.prepare(listed, (b"another", "CA"), "file", shelf.now, lambda: None) is not None


def test_a_delta_whose_number_a_later_complete_list_has_contradicts_nothing(shelf: Shelf) -> None:
    """It was told so once more, when its file or URL was read again."""
    shelf.put(crl(CA, number=7, age=HOUR, life=9 * HOUR, now=shelf.now))
    delta = crl(CA, {1: None}, number=8, base=7, age=20 * MINUTE, life=HOUR, now=shelf.now)
    shelf.put(delta)
    shelf.put(crl(CA, {1: None}, number=8, age=10 * MINUTE, life=9 * HOUR, now=shelf.now))
    assert (shelf.contradiction(delta), shelf.put(delta)) == ("", None)
    later = crl(CA, {2: None}, number=8, base=7, age=MINUTE, life=HOUR, now=shelf.now)
    assert (shelf.contradiction(later), shelf.put(later)) == ("", ({2}, 0))
