"""Sessions and retained messages that come and go while batches are written, or cannot be: the store ends up right.

What the store never held need not be removed from it. A store that is told of every removal is the slow twin; and
however often a batch fails, no removal waits of what it never held. Whoever waits for an end is called.

Where only the sync failed, the log holds what was tried, and a crash brings it back until a write succeeds. So nobody
is told before that a retained message is cleared, and the end of such a session is not forgotten.
"""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from broker.mqtt.message import Message
from broker.store.batch import Otherwise
from broker.store.journal import Journal
from tests.support.batches import Ear
from tests.support.examples import examples

TOPICS = ("a", "b", "c")
STEPS = st.lists(
    st.one_of(
        st.sampled_from(["begin", "brief", "end", "ask", "take", "written", "failed", "not synced"]),
        st.tuples(st.sampled_from(["retain", "clear"]), st.sampled_from(TOPICS)),
    ),
    min_size=10,
    max_size=40,
)


class Stored:
    """What a database would hold."""

    def __init__(self) -> None:
        self.sessions: dict[int, Any] = {1: (), 2: ()}
        self.retained: dict[str, Any] = {"a": ()}
        self.topics = {"a"}
        """All that it ever held."""
        self.left: Stored | None = None
        """What it would hold after a crash, if the log holds what was tried."""

    def apply(self, journal: Journal) -> None:
        batch = journal.writing
        assert batch is not None
        _apply(self.sessions, batch.sessions)
        _apply(self.retained, batch.retained)
        self.topics |= self.retained.keys()
        self.left = None

    def act(self, step: str, journal: Journal) -> None:
        """Let the store do *step*, if it can."""
        if step == "take":
            journal.take()
        elif journal.writing is not None and step == "written":
            self.apply(journal)
            journal.written()
        elif journal.writing is not None and step in ("failed", "not synced"):
            if step == "not synced":
                self.leave(journal)
            journal.not_written(0.0)
            removed = {row for row, values in journal.open.sessions.items() if values is None}
            cleared = {topic for topic, row in journal.open.retained.items() if row is None}
            assert removed <= set(self.sessions)
            assert cleared <= self.topics

    def leave(self, journal: Journal) -> None:
        """Keep in the log what is tried."""
        left = Stored()
        left.sessions, left.retained = self.sessions.copy(), self.retained.copy()
        left.apply(journal)
        self.left = left

    def may_hold(self, table: str, key: Any) -> bool:
        """Whether *key* may be in *table* after a crash."""
        return any(key in getattr(each, table) for each in (self, self.left) if each is not None)


def end_turn(journal: Journal) -> None:
    """Do what the store does at the end of a turn while it cannot be written."""
    if journal.failed and journal.writing is None and not journal.open.holds_answers:
        journal.written()


def _apply(table: dict[Any, Any], changes: dict[Any, Any]) -> None:
    for key, row in changes.items():
        if row is None:
            table.pop(key, None)
        else:
            table[key] = row


@examples(120, of=400)
@given(STEPS)
@example(["begin", "take", "written", "begin", "take", "failed", "end", "end"])
@example([("clear", "a"), "take", ("retain", "a"), "failed", ("clear", "a")])
@example([("clear", "a"), "take", "begin", "brief", "ask", "end", "written"])
@example([("clear", "a"), "take", "begin", "brief", "end", "written", "ask"])
@example(["begin", ("retain", "b"), "take", "not synced", "end", ("clear", "b"), "take", "failed", "take", "written"])
@example(["begin", ("retain", "b"), "take", "end", ("clear", "b"), "not synced", "take", "failed", "take", "written"])
def test_what_was_never_stored_is_not_removed_and_nothing_that_was_is_left(steps: list[Any]) -> None:
    journal, stored = Journal(0.0, last_session=2), Stored()
    sessions, retained = set(stored.sessions), set(stored.retained)
    asked, called = 0, list[float]()
    ear, cleared_at = Ear(), dict[str, bytes]()
    for count, step in enumerate(steps):
        row = max(sessions, default=0)
        match step:
            case "begin":
                row = journal.new_session("client", "owner")
                journal.save_session(row, (row,))
                sessions.add(row)
            case "brief" if sessions:  # It is to end with its connection.
                journal.save_session(row, (row,))
                journal.ended("client", unfinished=False)
            case "end" if sessions:
                sessions.remove(row)
                if journal.remove_session(row):
                    journal.ended("client", unfinished=row % 2 == 0)
                else:
                    assert not stored.may_hold("sessions", row)
            case "ask" if journal.unwritten_end("client") is not None:
                journal.when_ended("client", called.append)
                asked += 1
            case ("retain", topic):
                journal.retain(topic, Message(b"t", b"x"), replaces=topic in retained)
                retained.add(topic)
            case ("clear", topic) if topic in retained:
                journal.retain(topic, None)
                retained.remove(topic)
                cleared_at[topic] = b"%d" % count
                journal.answer(ear, cleared_at[topic], Otherwise.WAIT)
            case _:
                stored.act(step, journal)
        end_turn(journal)
        for topic in cleared_at.keys() - retained:
            assert cleared_at[topic] not in ear.outbox or not stored.may_hold("retained", topic), "told too early"
        ear.outbox.clear()
    while journal.writing is not None or journal.take(probe=journal.failed) is not None:
        stored.apply(journal)
        journal.written()
    assert len([each(0.0) for each in journal.watching]) == len(called) == asked
    assert (set(stored.sessions), set(stored.retained)) == (sessions, retained)
