"""A batch that cannot be written: what becomes of its answers, and of what was noted meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.mqtt.message import Message, Released
from broker.store.batch import Otherwise
from broker.store.journal import Journal
from tests.support.batches import Ear, dispatched, stored

ROW = (2, False, False, 0, b"", 9)


def test_a_batch_that_fails_is_kept_and_its_answers_become_what_they_said(journal: Journal) -> None:
    refused, closed, waiting = Ear(), Ear(), Ear()
    journal.add(1, stored())
    journal.answer(refused, b"yes", b"no")
    journal.answer(closed, b"yes")
    journal.answer(waiting, b"yes", Otherwise.WAIT)
    journal.send(waiting, b"packet")
    batch = journal.take()
    journal.add(1, stored())
    assert (journal.not_written(3.0), journal.failed) == ({refused}, True)
    assert (refused.outbox, closed.outbox, waiting.outbox) == ([b"no"], [], [])
    assert closed.closed_at == 3.0
    assert journal.writing is None
    assert journal.open is batch
    assert sorted(journal.open.deliveries) == [31, 32]
    journal.not_written(4.0)
    assert refused.outbox == [b"no"], "refused once"
    assert journal.take() is batch
    journal.written()
    assert not journal.failed
    assert waiting.outbox == [b"packet", b"yes"]
    assert closed.outbox == []


def test_a_batch_that_fails_and_what_was_noted_meanwhile_become_what_one_batch_would_be(
    journal: Journal, ear: Ear
) -> None:
    def note(noted: Journal, row: int) -> None:
        noted.clock_set(5.0)
        noted.save_session(row, ("client", "owner", True, 60, 90.0))
        noted.subscribe(row, "a", (1,))
        noted.replayed(row, "a", 3)
        noted.add(row, delivery := stored(Message(b"t", b"x", 2, expires_at=50.0), qos=2))
        noted.advance(delivery, 9, released=True)
        before = Message(b"t", b"before")
        before.row, before.references = row, 1
        noted.remove(Released(before, row * 64))
        noted.restore(9, 7, 7)
        for place in (0, 2):
            noted.remove(Released(None, 9 * 64 + place))
        noted.incoming(row, 8, known=True)
        noted.retain(f"t/{row}", Message(b"t", b"x", expires_at=50.0), "", row)
        noted.retain(f"for ever/{row}", Message(b"t", b"x"), "", row)
        noted.retain(f"gone/{row}", None)
        noted.send(ear, b"packet %d" % row)
        noted.answer(ear, b"answer %d" % row, Otherwise.WAIT)
        noted.resume(ear)

    expected = Journal(100.0, last_session=7, last_message=40, last_delivery=30)
    for row in (1, 2):
        note(journal, row)
        note(expected, row)
        if row == 1:
            assert journal.take() is not None
    journal.not_written(0.0)
    assert dispatched(journal.open) == dispatched(expected.open)
    assert replace(journal.open, deliveries={}) == replace(expected.open, deliveries={})


def test_who_has_gone_when_a_batch_fails_is_told_nothing(journal: Journal, ear: Ear) -> None:
    journal.add(1, stored())
    for otherwise in (b"failed", Otherwise.CLOSE, Otherwise.WAIT):
        journal.answer(ear, b"a", otherwise)
    ear.session = None
    assert journal.take() is not None
    assert journal.not_written(1.0) == set()
    assert (ear.outbox, ear.closed_at, journal.open.answers) == ([], None, [])


def test_answers_behind_a_failed_batch_are_refused_too(journal: Journal, ear: Ear) -> None:
    journal.add(1, stored())
    journal.take()
    journal.answer(ear, b"yes", b"no")
    journal.not_written(0.0)
    journal.written()
    assert ear.outbox == [b"no"]


def test_what_is_acknowledged_while_the_store_fails_need_not_be_written_and_is_answered(
    journal: Journal, ear: Ear
) -> None:
    older, message = Message(b"t", b"x", 1), Message(b"t", b"x", 1)
    first, second = stored(older), stored(message)
    journal.add(1, first)
    journal.take()
    journal.written()
    journal.add(1, second)
    journal.answer(ear, b"yes", Otherwise.WAIT)
    journal.take()
    journal.not_written(0.0)
    journal.remove(first)
    journal.written()
    assert ear.outbox == []
    journal.remove(second)
    assert journal.open.changes, "that the first is over has to be written, but nobody is promised that"
    assert not journal.open.promises
    journal.written()
    assert ear.outbox == [b"yes"]
    assert (journal.failed, journal.dirty) == (True, True), "nothing was written, so nobody knows that it can be"
    journal.take(probe=True)
    journal.written()
    assert not journal.dirty
    assert journal.take(probe=True) is not None, "a probe needs nothing to write"
    journal.written()
    assert not journal.failed


def test_a_probe_that_succeeds_ends_the_failure_though_nothing_is_left_to_write(journal: Journal) -> None:
    failed = [journal.failed]
    journal.add(1, delivery := stored())
    journal.take()
    journal.not_written(0.0)
    journal.remove(delivery)
    assert not journal.open.changes
    journal.take()
    journal.written()
    failed.append(journal.failed)
    journal.take(probe=True)
    journal.written()
    assert [*failed, journal.failed] == [False, True, False], "where nothing was written, nobody knows that it can be"


def test_what_is_over_is_struck_from_a_batch_that_could_not_be_written(journal: Journal) -> None:
    first, second = stored(Message(b"t", b"x", 2), 2), stored(Message(b"t", b"y", 2), 2)
    row, other = journal.new_session("a", "owner"), journal.new_session("b", "owner")
    journal.save_session(row, ("s",))
    journal.subscribe(row, "t", ())
    journal.incoming(row, 5, known=True)
    journal.add(row, first)
    journal.add(other, second)
    journal.advance(second, 3, released=False)
    journal.retain("t", first.message)
    journal.take()
    journal.remove(first)
    journal.remove_session(row)
    journal.remove(second)
    journal.retain("t", None)
    journal.not_written(0.0)
    batch = journal.open
    assert batch.sessions == {}, "the store never held it"
    assert batch.retained == {"t": None}
    assert (batch.subscriptions, batch.messages, batch.deliveries, batch.progress) == ({}, {}, {}, {})
    assert batch.incoming == {}
    assert (batch.done, batch.finished, batch.unreferenced) == ([], [], [])


@pytest.mark.parametrize(("again", "left"), [(False, [3, 4, 5]), (True, [5])])
def test_a_batch_that_could_not_be_written_keeps_what_was_replayed_to_the_same_subscription(
    journal: Journal, again: bool, left: list[int]
) -> None:
    journal.replays(1, "a", ROW)
    journal.replayed(1, "a", 3)
    journal.replayed(1, "a", 4)
    journal.take()
    if again:
        journal.subscribe(1, "a", ROW)
        journal.replays(1, "a", ROW)
    journal.replayed(1, "a", 5)
    journal.not_written(0.0)
    assert journal.open.replayed == {(1, "a"): left}
    assert journal.open.subscriptions == {(1, "a"): ROW}


def test_what_was_noted_for_a_session_that_ended_meanwhile_is_not_written_after_all(journal: Journal) -> None:
    """Its rows would refer to none, the database would refuse them, and no batch could be written any more."""
    journal.save_session(1, ("client", "owner", True, 60, 90.0))
    assert journal.take() is not None
    journal.subscribe(2, "a", (1,))
    journal.incoming(2, 8, known=True)
    journal.remove_session(2)
    journal.not_written(0.0)
    failed = journal.open
    assert (failed.sessions[2], failed.subscriptions, failed.incoming) == (None, {}, {})


def test_the_end_of_the_newest_session_that_is_stored_is_written_although_a_batch_before_it_failed(
    journal: Journal,
) -> None:
    newest = journal.new_session("a", "owner")
    journal.save_session(newest, ("s",))
    journal.take()
    journal.written()
    journal.save_session(1, ("client", "owner", True, 60, 90.0))
    journal.take()
    journal.remove_session(newest)
    journal.not_written(0.0)
    assert journal.open.sessions[newest] is None


@pytest.mark.parametrize("fails", [False, True])
def test_that_a_packet_identifier_is_free_is_in_doubt_until_it_is_written(journal: Journal, fails: bool) -> None:
    journal.incoming(1, 8, known=False)
    assert [journal.freed(row) for row in (1, 2)] == [True, False]
    journal.take()
    journal.incoming(2, 8, known=False)
    journal.incoming(3, 8, known=True)
    assert [journal.freed(row) for row in (1, 2, 3)] == [True, True, False]
    if fails:
        journal.not_written(0.0)
    else:
        journal.written()
    assert [journal.freed(row) for row in (1, 2, 3)] == [fails, True, False]
    journal.take()
    journal.written()
    assert not any(journal.freed(row) for row in (1, 2, 3))


def test_who_waits_for_the_end_of_a_session_is_called_when_the_last_end_of_its_name_is_written(
    journal: Journal,
) -> None:
    called: list[str] = []
    journal.remove_session(1)
    journal.ended("/device/meter-1", unfinished=True)
    first = journal.take()
    assert first is not None
    journal.when_ended("/device/meter-1", lambda _: called.append("first"))
    journal.remove_session(2)
    journal.ended("/device/meter-1", unfinished=False)
    assert journal.unwritten_end("/device/meter-1") is True, "of either"
    journal.when_ended("/device/meter-1", lambda _: called.append("second"))
    for said in (["first"], ["first", "second"]):
        journal.written()
        while journal.watching:
            journal.watching.popleft()(0.0)
        assert called == said
        journal.take()
    assert journal.unwritten_end("/device/meter-1") is None


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_an_end_that_could_not_be_written_concerns_who_comes_next_if_any_of_its_name_was_unfinished(
    journal: Journal, first: bool, second: bool
) -> None:
    journal.remove_session(1)
    journal.ended("/device/meter-1", unfinished=first)
    journal.take()
    journal.remove_session(2)
    journal.ended("/device/meter-1", unfinished=second)
    journal.ended("/device/meter-2", unfinished=second)
    journal.not_written(0.0)
    assert journal.unwritten_end("/device/meter-1") is (True if first or second else None)
    assert journal.unwritten_end("/device/meter-2") is (True if second else None)


@pytest.mark.parametrize("before", ["nothing", "something"])
@pytest.mark.parametrize("fails", ["before", "between", "after"])
def test_a_topic_cleared_again_is_written_as_such_only_if_the_store_may_hold_it(
    journal: Journal, before: str, fails: str
) -> None:
    message = Message(b"t", b"x")
    if fails == "before":
        journal.retain("other", message)
        journal.take()
    journal.retain("t", message, replaces=before == "something")
    if fails == "before":
        journal.not_written(0.0)
    if fails == "between":
        journal.take()
    journal.retain("t", None)
    if fails == "between":
        journal.not_written(0.0)
    if fails == "after":
        journal.retain("other", message)
        journal.take()
        journal.not_written(0.0)
    assert journal.open.retained.get("t", "nothing") == (None if before == "something" else "nothing")
    assert journal.open.new_topics == set()


def test_a_topic_that_had_a_message_before_it_was_cleared_is_not_taken_for_a_new_one(journal: Journal) -> None:
    message = Message(b"t", b"x")
    for topic_name in ("open", "writing"):
        journal.retain(topic_name, None)
        if topic_name == "writing":
            journal.take()
            journal.not_written(0.0)
            assert journal.take() is not None
        journal.retain(topic_name, message, replaces=False)
        journal.retain(topic_name, None)
        assert journal.open.retained[topic_name] is None
    journal.not_written(0.0)
    assert journal.open.retained == {"open": None, "writing": None}


def test_a_new_topic_stays_new_while_the_store_fails_and_is_known_once_written(journal: Journal) -> None:
    message = Message(b"t", b"x")
    journal.retain("t", message, replaces=False)
    for _ in range(2):
        journal.take()
        journal.retain("t", message, replaces=True)
        journal.not_written(0.0)
    assert journal.take() is not None
    journal.retain("u", message, replaces=False)
    journal.written()
    journal.retain("t", None)
    journal.retain("u", None)
    assert journal.open.retained == {"t": None}


def test_packets_of_a_connection_that_has_gone_are_dropped_when_a_batch_fails(journal: Journal, ear: Ear) -> None:
    gone = Ear()
    for each in (ear, gone):
        for _ in range(3):
            journal.send(each, b"packet")
        journal.resume(each)
    gone.session = None
    journal.take()
    journal.send(gone, b"later")
    journal.not_written(0.0)
    assert (list(journal.open.packets), journal.open.resumed) == ([(ear, b"packet")], [ear])


@pytest.mark.parametrize("cleared", ["while it is written", "afterwards"])
def test_a_message_that_may_be_in_the_log_is_not_cleared_before_a_write_succeeds(
    journal: Journal, ear: Ear, cleared: str
) -> None:
    """Whoever was told that it is cleared found it again: after a failed fsync, and a kill before the next write."""

    def clear() -> None:
        journal.retain("t", None)
        journal.answer(ear, b"cleared", Otherwise.WAIT)

    journal.retain("t", Message(b"t", b"x"), replaces=False)
    assert journal.take() is not None
    if cleared == "while it is written":
        clear()
    journal.not_written(1.0)
    if cleared == "afterwards":
        clear()
    assert (journal.open.retained, journal.open.changes) == ({}, False), "nothing is kept of it"
    assert journal.open.holds_answers
    assert journal.take(probe=True) is not None
    journal.not_written(2.0)
    assert (journal.open.holds_answers, ear.outbox) == (True, [])
    assert journal.take(probe=True) is not None
    journal.written()
    assert ear.outbox == [b"cleared"]
    journal.retain("t", Message(b"t", b"x"), replaces=False)
    journal.retain("t", None)
    assert not journal.open.holds_answers, "none of this was ever tried"


def test_a_message_that_may_be_in_the_log_is_not_forgotten_for_another_that_is_not(journal: Journal, ear: Ear) -> None:
    journal.retain("t", Message(b"t", b"x"), replaces=False)
    assert journal.take() is not None
    journal.not_written(1.0)
    for topic in ("t", "u"):
        journal.retain(topic, Message(topic.encode(), b"x"), replaces=False)
        journal.retain(topic, None)
    journal.answer(ear, b"cleared", Otherwise.WAIT)
    assert (journal.open.retained, journal.open.holds_answers) == ({}, True)
