"""What a delta and a complete list say together is what the next complete list says, whatever happened."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from provisioning.ca.crl import entry_of, removal_of
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.crl_contents import CrlContents
from provisioning.store.revocations import ListedChange
from tests.support.requests import NOON

LATER = NOON + timedelta(days=30)
HOLD, FINAL = RevocationReason.CERTIFICATE_HOLD, RevocationReason.KEY_COMPROMISE
CHANGES = st.lists(st.tuples(st.integers(1, 5), st.sampled_from([HOLD, FINAL, None])), max_size=30)


def change(sequence: int, serial: int, reason: RevocationReason | None) -> ListedChange:
    return ListedChange(sequence, serial, LATER, NOON, None if reason is None else NOON, reason)


@given(CHANGES, st.integers(0, 30), st.integers(0, 30))
def test_base_and_delta_make_the_complete_list(
    happened: list[tuple[int, RevocationReason | None]], base_at: int, middle_at: int
) -> None:
    events = [change(number, *each) for number, each in enumerate(happened, 1)]
    base_at, middle_at = sorted((min(base_at, len(events)), min(middle_at, len(events))))
    base = CrlContents()
    base.apply(events[:base_at], base_at)
    middle = CrlContents()
    middle.apply(events[:middle_at], middle_at)
    newest = CrlContents()
    newest.apply(events[:middle_at], middle_at)
    newest.apply(events[middle_at:], len(events))
    delta = newest.since(base_at)
    for held in (base, middle):  # A delta continues its base and every complete list after it.
        combined = {**held.complete(NOON), **delta}
        removed = {serial for serial, entry in combined.items() if entry == removal_of(serial, NOON)}
        assert {serial: entry for serial, entry in combined.items() if serial not in removed} == newest.complete(NOON)


def test_what_is_new_is_joined_by_itself_until_the_pieces_are_many() -> None:
    contents = CrlContents()
    for number in range(1, 600):
        contents.apply([change(number, number, FINAL)], number)
        listed = contents.complete(NOON)
        assert b"".join(contents.pieces()) == b"".join(listed.values())
        assert len(contents.pieces()) <= 256
    kept = contents.pieces()[0]
    contents.apply([change(600, 600, FINAL), change(601, 1, FINAL)], 601)  # What is said again is not new.
    assert contents.pieces()[0] is kept
    contents.apply([change(602, 2, None)], 602)
    assert b"".join(contents.pieces()) == b"".join(contents.complete(NOON).values())


def test_a_hold_that_becomes_final_is_final_in_what_is_signed() -> None:
    """Of the pieces joined for the list before, the one that says "hold" must not be signed again."""
    contents = CrlContents()
    contents.apply([change(1, 7, HOLD), change(2, 8, FINAL)], 2)
    assert b"".join(contents.pieces()) == entry_of(7, NOON, HOLD) + entry_of(8, NOON, FINAL)
    contents.apply([change(3, 7, FINAL)], 3)
    assert b"".join(contents.pieces()) == entry_of(7, NOON, FINAL) + entry_of(8, NOON, FINAL)


def test_an_entry_leaves_after_one_list_past_its_end() -> None:
    contents = CrlContents()
    contents.apply([change(1, 7, FINAL)], 1)
    assert contents.complete(LATER - timedelta(seconds=1)) == {7: entry_of(7, NOON, FINAL)}
    assert contents.complete(LATER) == {}


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("change"), st.integers(1, 6), st.integers(1, 20)),  # A serial number, and days to its end.
        st.tuples(st.just("release"), st.integers(1, 6), st.just(0)),
        st.tuples(st.just("list"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("delta"), st.integers(0, 30), st.just(0)),
    ),
    max_size=30,
)


@given(STEPS)
def test_what_is_not_looked_at_would_not_have_changed_anything(steps: list[tuple[str, int, int]]) -> None:
    """Ends and places that are not reached yet are skipped: compared with looking at each entry every time."""
    contents, entries, recent = CrlContents(), dict[int, tuple[timedelta, bytes]](), dict[int, tuple[int, bytes]]()
    for place, (what, number, days) in enumerate(steps, 1):
        if what == "list":
            entries = {serial: each for serial, each in entries.items() if each[0] > timedelta(number)}
            expected = {serial: entry for serial, (_, entry) in entries.items()}
            listed = contents.complete(NOON + timedelta(number))
            assert listed == expected
            assert b"".join(contents.pieces()) == b"".join(listed.values())
        elif what == "delta":
            base = min(number, place - 1)  # No list tells what has not happened yet.
            recent = {serial: each for serial, each in recent.items() if each[0] > base}
            assert contents.since(base) == {serial: entry for serial, (_, entry) in recent.items()}
        elif what == "change":
            entry = entry_of(number, NOON, HOLD)
            entries[number], recent[number] = (timedelta(days), entry), (place, entry)
            contents.apply([ListedChange(place, number, NOON + timedelta(days), NOON, NOON, HOLD)], place)
        else:
            entries.pop(number, None)
            recent[number] = (place, removal_of(number, NOON))
            contents.apply([change(place, number, None)], place)
