"""The journal alone: what goes into a batch, what is struck from it, and what leaves when."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from broker.mqtt.message import Message, Released
from broker.store import journal as module
from broker.store.batch import Batch, Moved, Otherwise, Row
from broker.store.dispatch import packed
from broker.store.journal import Journal
from broker.store.owed import Again
from tests.support.batches import Ear, dispatched, stored


def test_an_answer_leaves_at_once_when_nothing_is_unwritten(journal: Journal, ear: Ear) -> None:
    journal.answer(ear, b"a")
    assert ear.outbox == [b"a"]
    assert journal.take() is None


def test_a_turn_that_changed_nothing_asks_nothing_of_the_store(journal: Journal) -> None:
    asked: list[bool] = []
    journal.turn_ended()  # Before there is a store.
    journal.begin = lambda: asked.append(journal.dirty)
    journal.turn_ended()
    assert asked == []
    journal.incoming(1, 5, known=True)
    journal.turn_ended()
    journal.turn_ended()
    assert asked == [True, True]
    journal.take()
    journal.written()
    journal.turn_ended()
    assert asked == [True, True]


@pytest.mark.parametrize(
    "note",
    [
        lambda journal, _: journal.save_session(1, ("state",)),
        lambda journal, _: journal.remove_session(1),
        lambda journal, _: journal.subscribe(1, "a/#", (1,)),
        lambda journal, _: journal.unsubscribe(1, "a/#"),
        lambda journal, _: journal.replays(1, "a/#", (1,)),
        lambda journal, _: journal.replayed(1, "a/#", 5),
        lambda journal, _: journal.add(1, stored()),
        lambda journal, _: journal.advance(stored(), 9, released=False),
        lambda journal, _: journal.remove(Released(Message(b"t", b"x", 1), 64)),
        lambda journal, _: journal.incoming(1, 9, known=True),
        lambda journal, _: journal.retain("t", Message(b"t", b"x", 1)),
        lambda journal, _: journal.retain("t", None),
        lambda journal, ear: journal.send(ear, b"frame"),
    ],
    ids=lambda note: note.__code__.co_names[0],
)
def test_whatever_is_noted_holds_back_the_answer_until_it_is_written(
    journal: Journal, ear: Ear, note: Callable[[Journal, Ear], None]
) -> None:
    note(journal, ear)
    journal.answer(ear, b"answer")
    assert ear.outbox == []
    assert journal.take() is not None
    assert journal.written() == {ear}
    assert ear.outbox[-1] == b"answer"


def test_answers_wait_and_leave_in_their_order(journal: Journal, ear: Ear) -> None:
    journal.add(1, stored())
    journal.answer(ear, b"1")
    assert journal.take() is not None
    journal.answer(ear, b"2")  # Nothing new is to be written, but 1 is not written yet.
    assert ear.outbox == []
    assert journal.take() is None, "one batch at a time"
    assert journal.written() == {ear}
    assert ear.outbox == [b"1", b"2"]
    assert not journal.dirty


def test_an_answer_that_waited_for_its_turn_alone_leaves_once(journal: Journal, ear: Ear) -> None:
    journal.add(1, stored())
    journal.take()
    journal.answer(ear, b"1")
    journal.written()
    assert ear.outbox == [b"1"]
    assert journal.written() == set()
    journal.add(1, stored())
    journal.take()
    journal.written()
    assert ear.outbox == [b"1"]


def test_what_came_while_a_batch_was_written_waits_for_the_next(journal: Journal, ear: Ear) -> None:
    journal.add(1, stored())
    journal.answer(ear, b"1")
    journal.take()
    journal.add(1, stored())
    journal.answer(ear, b"2")
    journal.written()
    assert ear.outbox == [b"1"]
    assert journal.take() is not None
    journal.written()
    assert ear.outbox == [b"1", b"2"]


def test_what_is_acknowledged_before_it_is_written_is_never_written(journal: Journal, ear: Ear) -> None:
    message = Message(b"t", b"x", 1)
    first, second = stored(message), stored(message)
    journal.add(1, first)
    journal.add(2, second)
    journal.answer(ear, b"a")
    journal.remove(first)
    assert journal.open.messages
    assert [row[-2:] for row in dispatched(journal.open)] == [(2, packed([2]))]
    journal.remove(second)
    assert not journal.open.changes
    assert journal.take() is not None
    journal.written()
    assert ear.outbox == [b"a"]


@pytest.mark.parametrize("written", [False, True])
def test_what_is_acknowledged_later_is_removed(journal: Journal, written: bool) -> None:
    message = Message(b"t", b"x", 2)
    delivery = stored(message, 2)
    journal.add(1, delivery)
    journal.take()
    if written:
        journal.written()
    journal.advance(delivery, 9, released=True)
    journal.remove(delivery)
    batch = journal.open
    assert (batch.done, batch.finished, batch.unreferenced, batch.progress) == ([(31,)], [(31 * 64,)], [(41,)], {})
    assert message.row == 0


def test_a_message_that_is_given_to_another_after_all_gets_a_new_row(journal: Journal) -> None:
    message = Message(b"t", b"x", 1)
    delivery = stored(message)
    journal.add(1, delivery)
    journal.take()
    journal.remove(delivery)
    journal.add(2, stored(message))
    assert list(journal.open.messages) == [42]
    assert [each.message for each in journal.open.deliveries.values()] == [42]


def test_a_session_takes_what_was_noted_for_it_along(journal: Journal) -> None:
    row = journal.new_session("a", "owner")
    assert row == 8
    journal.save_session(row, ("s",))
    journal.take()
    journal.subscribe(row, "t", ())
    journal.incoming(row, 5, known=True)
    journal.subscribe(1, "t", ())
    journal.remove_session(row)
    journal.written()
    batch = journal.take()
    assert batch is not None
    assert batch.sessions == {row: None}
    assert list(batch.subscriptions) == [(1, "t")]
    assert batch.incoming == {}


def test_two_ends_of_one_name_in_a_batch_leave_what_either_left(journal: Journal) -> None:
    for row, unfinished in ((1, True), (2, False)):
        journal.remove_session(row)
        journal.ended("/device/meter-1", unfinished=unfinished)
    assert journal.unwritten_end("/device/meter-1") is True


def test_a_session_that_the_store_was_never_given_leaves_nothing(journal: Journal) -> None:
    stored_row, given_row, row = 7, journal.new_session("a", "owner"), 0
    for each in (stored_row, given_row):
        journal.save_session(each, ("s",))
    journal.take()
    row = journal.new_session("b", "owner")
    journal.save_session(row, ("s",))
    for each in (stored_row, given_row, row):
        journal.remove_session(each)
    assert journal.open.sessions == {stored_row: None, given_row: None}
    journal.written()
    batch = journal.take()
    assert batch is not None
    assert batch.sessions == {stored_row: None, given_row: None}


def test_what_a_session_has_taken_along_promises_nothing_any_more(journal: Journal) -> None:
    row = 7
    journal.incoming(row, 5, known=True)
    before = journal.open.promises
    journal.remove_session(row)
    after = journal.open.promises
    assert (before, after) == (True, False)
    assert journal.open.changes


def test_many_sessions_that_end_in_one_turn_cost_one_pass_through_the_batch(journal: Journal) -> None:
    class Passed(dict[tuple[int, str], Row | None]):
        times = 0

        def __iter__(self) -> Iterator[tuple[int, str]]:
            self.times += 1
            return super().__iter__()

    journal.open.subscriptions = passed = Passed()
    rows = [journal.new_session(f"client-{number}", "owner") for number in range(100)]
    for row in rows:
        journal.subscribe(row, "t", ())
    for row in rows[1:]:
        journal.remove_session(row)
    assert passed.times == 0
    assert journal.take() is not None
    assert passed.times == 1
    assert [*passed.items()] == [((rows[0], "t"), ())]


def test_a_packet_waits_for_what_it_promises(journal: Journal, ear: Ear) -> None:
    journal.advance(stored(), 3, released=True)
    journal.send(ear, b"pubrel")
    assert ear.outbox == []
    journal.take()
    journal.written()
    assert ear.outbox == [b"pubrel"]


def test_a_packet_that_waits_for_the_next_batch_holds_back_the_answers_behind_it(journal: Journal, ear: Ear) -> None:
    journal.add(1, stored())
    journal.take()
    journal.send(ear, b"pubrel")
    journal.answer(ear, b"answer")
    journal.written()
    assert ear.outbox == []
    assert journal.dirty
    journal.take()
    journal.written()
    assert ear.outbox == [b"pubrel", b"answer"]


def test_what_waits_is_forgotten_with_its_connection(journal: Journal, ear: Ear) -> None:
    journal.add(1, stored())
    journal.answer(ear, b"a")
    journal.send(ear, b"p")
    journal.resume(ear)
    journal.take()
    ear.session = None
    assert journal.written() == set()
    assert journal.resume_some(0.0) == []
    assert (ear.outbox, ear.resumed_at) == ([], None)
    journal.answer(ear, b"late")
    assert ear.outbox == []


def test_a_session_resumes_when_everything_before_it_is_written(journal: Journal, ear: Ear) -> None:
    journal.add(1, stored())
    journal.take()
    journal.resume(ear)
    journal.written()
    assert journal.resume_some(1.0) == []
    assert ear.resumed_at is None, "it is in the batch behind"
    assert journal.take() is not None
    journal.written()
    assert journal.resume_some(2.0) == [ear]
    assert ear.resumed_at == 2.0


def test_of_many_who_come_back_a_portion_sends_again_at_once(journal: Journal) -> None:
    class Behind(Ear):
        def send_again(self, now: float) -> None:
            super().send_again(now)
            self.outbox += [b"a"] * 99

    many = [Behind() for _ in range(5)]
    journal.dirty = True
    for each in many:
        journal.resume(each)
    journal.take()
    journal.written()
    many[2].session = None  # Who is gone meanwhile is passed over.
    resumed = []
    while journal.resuming:
        resumed.append(journal.resume_some(1.0))
    assert resumed == [many[:2], [many[3], many[4]]]
    assert (many[2].outbox, journal.resume_some(1.0)) == ([], [])


class Held:
    """A publisher that is held."""

    def __init__(self) -> None:
        self.closed = False
        self.released = 0

    def release(self) -> None:
        self.released += 1


@pytest.mark.parametrize("fails", [False, True])
def test_who_is_held_is_read_again_once_when_the_batch_is_out_of_the_way(journal: Journal, fails: bool) -> None:
    journal.add(1, stored())
    journal.take()
    held = Held()
    journal.hold(held, 0.0)
    assert held.released == 0
    for _ in range(2):
        if fails:
            journal.not_written(0.0)
        else:
            journal.written()
        assert held.released == 1


def test_of_many_who_are_held_those_who_have_gone_are_let_go_of(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looked for now and then: as many come before the next look as there were at the last."""
    monkeypatch.setattr(journal, "_sweep_at", 3)
    monkeypatch.setattr(module, "_FEW_HELD", 3)
    gone, stay = [Held(), Held()], [Held() for _ in range(8)]
    for each in gone:
        journal.hold(each, 0.0)
        each.closed = True
    for each in stay:
        journal.hold(each, 0.0)
    sizes = []
    for _ in range(6):
        more = Held()
        journal.hold(more, 0.0)
        more.closed = True
        sizes.append(len(journal._held))
    assert sizes == [9, 10, 11, 12, 9, 10]
    journal.written()
    assert [each.released for each in gone] == [0, 0]
    assert [each.released for each in stay] == [1] * 8


def test_publishers_are_held_from_so_many_answers_and_retained_topics_on_while_the_store_works(
    journal: Journal, ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 3)
    journal.retain("a", None)
    journal.answer(ear, b"1", Otherwise.WAIT)
    crowded = [journal.crowded]
    journal.answer(ear, b"2", Otherwise.WAIT)
    assert [*crowded, journal.crowded] == [False, True]
    journal.take()
    assert not journal.crowded, "what is being written leaves room"
    journal.not_written(0.0)
    assert not journal.crowded, "what comes is refused, then"
    journal.take(probe=True)
    journal.written()
    for topic in "abc":
        assert not journal.crowded
        journal.retain(topic, None)
    assert journal.crowded


def test_that_the_clock_was_set_is_to_be_written_though_nothing_else_is(journal: Journal) -> None:
    journal.clock_set(5.0)
    journal.turn_ended()  # There is nobody yet who would write it.
    batch = journal.take()
    assert batch is not None
    assert batch.moved == Moved(5.0, frozenset(), 40, {}, 0)
    journal.clock_set(2.0)
    journal.save_session(1, ("client", "owner", True, 60, 90.0, b"will", 1))
    journal.clock_set(-4.0)
    assert journal.open.moved == Moved(-2.0, frozenset(), 40, {}, 0)
    assert journal.open.sessions[1] == ("client", "owner", True, 60, 86.0, b"will", 1)


def test_when_the_clock_is_set_what_this_process_has_stored_is_told_from_what_was_there(journal: Journal) -> None:
    journal.earlier = {1, 2, 3}
    journal.first_retained = 9
    journal.save_session(1, ("client", "owner", True, 60, 90.0))
    journal.remove_session(2)
    for _ in range(2):
        journal.add(1, stored(Message(b"t", b"x", 1, expires_at=50.0)))
    journal.clock_set(5.0, {41})
    assert [row[5] for row in journal.open.messages.values()] == [150.0, 155.0]
    assert journal.dirty
    assert journal.open.moved == Moved(5.0, frozenset({3}), 40, {41: 5.0}, 9)
    assert journal.open.sessions[1] == ("client", "owner", True, 60, 95.0)
    journal.retain("t", Message(b"t", b"x", expires_at=50.0))
    row = journal.open.retained["t"]
    assert row is not None
    assert row[5] == 155.0, "by the clock as it is now"


def test_what_came_again_is_routed_once_and_owed_once_on_each_connection_until_it_is_answered(
    journal: Journal, ear: Ear
) -> None:
    other = Ear()
    known = [journal.owe(ear, 5, connection) for connection in (ear, ear, other, other)]
    assert known == [Again.NEW, Again.WAITS, Again.UNANSWERED, Again.WAITS]
    assert [journal.owe(ear, 6, other), journal.owe(Ear(), 6, other)] == [Again.NEW, Again.NEW]
    journal.use_anew(ear, 5)
    assert [journal.owe(ear, 5, other), journal.owe(ear, 6, other)] == [Again.NEW, Again.WAITS]
    journal.take(probe=True)
    journal.written()
    assert journal.owe(ear, 5, other) is Again.NEW
    journal.use_anew(Ear(), 5)


_NOT_WRITTEN = (
    *("freed", "new_topics", "answers", "packets", "resumed", "ended", "watchers", "gone", "tried", "struck", "probe"),
    "thinned",  # Of what remains, which is written.
)


@pytest.mark.parametrize("table", [name for name in Batch.__dataclass_fields__ if name not in _NOT_WRITTEN])
def test_whatever_must_be_written_makes_a_batch_of_changes(table: str) -> None:
    batch = Batch()
    assert not batch.changes
    contents = getattr(batch, table)
    if table == "moved":
        batch.move(Moved(1.0, frozenset(), 0, {}, 0))
    elif isinstance(contents, dict):
        contents[1] = None
    else:
        contents.append((1,))
    assert batch.changes


ROW = (2, False, False, 0, b"", 9)


@pytest.mark.parametrize("change", ["subscribe", "unsubscribe", "remove_session"])
def test_what_was_replayed_is_struck_with_the_subscription_that_it_was_for(journal: Journal, change: str) -> None:
    """Else a row would refer to a subscription that is not there, or the next one would not get what it should."""
    for key in ("a", "b"):
        journal.replays(1, key, ROW)
        journal.replayed(1, key, 3)
    match change:
        case "subscribe":
            journal.subscribe(1, "a", ROW)
        case "unsubscribe":
            journal.unsubscribe(1, "a")
            assert journal.open.subscriptions == {(1, "a"): None, (1, "b"): ROW}
        case _:
            journal.remove_session(1)
            assert not journal.open.promises  # Looks for what is void.
    assert journal.open.replayed == ({} if change == "remove_session" else {(1, "b"): [3]})
