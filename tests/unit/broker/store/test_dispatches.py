"""One message for many sessions: in how few rows it is, and what is written of those that are done."""

from __future__ import annotations

import pytest

from broker.mqtt.message import Message, PersonalMessage
from broker.store.batch import Batch
from broker.store.dispatch import PLACES, packed
from broker.store.journal import Journal
from broker.store.sqlite import SqliteStore
from tests.support.batches import dispatch, dispatched, filled, stored


def test_a_message_for_many_sessions_is_written_once(journal: Journal) -> None:
    """And whom it goes to, in as few rows as they have ways to get it, and places."""
    message = Message(b"t", b"x", 1, expires_at=5.0)
    alike = [stored(message) for _ in range(PLACES + 2)]
    for row, each in enumerate(alike, 1):
        journal.add(row, each)
        if row <= 2:
            journal.add(row, PersonalMessage(message, retain=True, identifiers=b"7", share="$share/g/t"))
    batch = journal.open
    assert batch.messages == {41: (b"t", b"x", 1, False, b"", 105.0)}
    journal.add(1, stored(Message(b"t", b"x", 2), 2))
    journal.add(1, stored(message))
    assert dispatched(batch) == [
        (31, 41, 1, False, b"", "", (1 << PLACES) - 1, packed([*range(1, PLACES + 1)])),
        (32, 41, 1, True, b"7", "$share/g/t", 3, packed([1, 2])),
        (33, 41, 1, False, b"", "", 3, packed([PLACES + 1, PLACES + 2])),
        (34, 42, 2, False, b"", "", 1, packed([1])),
        (35, 41, 1, False, b"", "", 1, packed([1])),
    ]
    assert [each.sequence for each in alike] == [*range(31 * 64, 31 * 64 + PLACES), 33 * 64, 33 * 64 + 1]


@pytest.mark.parametrize("written", [False, True])
def test_of_what_several_get_it_is_said_who_is_left_and_a_row_of_few_is_written_anew(
    journal: Journal, written: bool
) -> None:
    message = Message(b"t", b"x", 1)
    deliveries = [stored(message) for _ in range(5)]
    for row, each in enumerate(deliveries, 1):
        journal.add(row, each)
    assert journal.take() is not None
    if written:
        journal.written()
    said = []
    for place in (3, 0, 4, 2):
        journal.remove(deliveries[place])
        said.append(dict(journal.open.remaining))
    assert said == [{31: 0b10111}, {31: 0b10110}, {31: 0b00110}, {31: 0b00010}]
    assert (journal.open.done, journal.open.unreferenced, journal.open.thinned) == ([], [], set())
    journal.written()
    batch = journal.take()
    assert batch is not None
    assert batch.thinned == {31}, "now that its row is in the store"
    journal.remove(deliveries[1])
    assert (journal.open.remaining, journal.open.done, journal.open.unreferenced) == ({31: 0}, [], [(41,)])


def test_a_message_that_comes_again_after_another_or_after_all_had_it_is_in_rows_of_its_own(journal: Journal) -> None:
    """Else it would be restored before the other; or not at all, in a row that is struck."""
    message, other = Message(b"t", b"x", 1), Message(b"t", b"y", 1)

    def add(each: Message, *, retain: bool = False) -> int:
        journal.add(1, delivery := PersonalMessage(each, retain=retain))
        given.append(delivery)
        return delivery.sequence // 64

    given: list[PersonalMessage] = []
    assert [add(message), add(message, retain=True), add(other), add(message), add(message, retain=True)] == [
        *range(31, 36)
    ]
    journal.take()
    assert add(message) == 36
    journal.remove(given[-1])
    assert (add(message), [*journal.open.deliveries]) == (37, [37])


def test_of_a_dispatch_those_that_are_left_are_written_and_nothing_beside_it(store: SqliteStore) -> None:
    batch = filled()
    for number in (7, 8, 11):
        batch.deliveries[number] = dispatch(number, 5, *range(1, 6), qos=2)
        batch.remaining[number] = 0b11110
        batch.progress[number * 64 + 2] = (70 + number, False)
    store._apply(batch)
    later = Batch(progress={8 * 64 + 2: (80, True)}, done=[(9,)], finished=[(9 * 64,), (11 * 64 + 2,)])
    later.remaining |= {7: 0, 8: 0b01000, 11: 0b10100}
    later.thinned |= {7, 8}
    for _ in range(2):
        store._apply(later)
        assert store.rows("SELECT id, places, sessions FROM deliveries WHERE id <> 10") == [
            (8, 0b01000, packed([4])),
            (11, 0b11111, packed([1, 2, 3, 4, 5])),
        ]
        assert store.rows("SELECT * FROM remaining") == [(10, 2), (11, 0b10100)]
        assert store.rows("SELECT * FROM progress") == [(7 * 64 + 2, 77, 0), (8 * 64 + 2, 80, 1)]
