"""What many sessions are still to get is what the store has, after any restart: a walk beside a list of each session.

The journal and the tables as they are; of the sessions only what each has to get. The sessions are more than a dispatch
has places for. A batch is written as the store's thread may do it, before or after what comes meanwhile.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from itertools import groupby
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from broker.mqtt.message import Message, PersonalMessage, Released
from broker.process.recovery import _deliveries
from broker.store.dispatch import PLACES
from broker.store.journal import Journal
from broker.store.schema import NEVER_WRITTEN, SCHEMA
from broker.store.sqlite import apply_changes
from tests.support.batches import SESSION
from tests.support.examples import examples

SESSIONS = range(1, 2 * PLACES + 20)
WAYS: list[dict[str, Any]] = [{}, {"qos": 2}, {"identifiers": b"\x0b\x07"}, {"share": "$share/g/t"}, {"retain": True}]
Delivery = PersonalMessage | Released
Waiting = dict[int, list[tuple[Any, ...]]]
"""Of each session, in order, what it is to get."""

KINDS = ["publish", "again", "again", "acknowledge", "acknowledge", "all", "most", "most", "advance", "send", "end"]
STORE = ["write", "write", "write", "write", "fail", "fail", "logged", "kill"]
steps = st.tuples(st.sampled_from(KINDS + STORE), st.integers(0, 1 << 30))


class Kept:
    """What one session is to get, as the broker has it: a packet identifier beside each that was sent."""

    def __init__(self) -> None:
        self.deliveries: list[tuple[Delivery, int | None]] = []

    def restore(self, delivery: Delivery, packet_id: int | None, _used: object = ()) -> None:
        self.deliveries.append((delivery, packet_id))


class Database:
    """A database in memory."""

    def __init__(self, content: bytes | None = None) -> None:
        self.connection = sqlite3.connect(":memory:", isolation_level=None)
        if content is None:
            self.connection.executescript(SCHEMA)
        else:
            self.connection.deserialize(content)
        self.connection.execute("PRAGMA foreign_keys=ON")

    def each(self, query: str) -> Iterator[tuple[Any, ...]]:
        return iter(self.connection.execute(query).fetchall())


class World:
    """A journal, its database, and the sessions."""

    def __init__(self) -> None:
        self.database = Database()
        self.journal = Journal(0.0, last_session=SESSIONS[-1])
        self.sessions = {row: Kept() for row in SESSIONS}
        self.messages: list[Message] = []
        self.count = 0
        for row in SESSIONS:
            self.journal.save_session(row, (f"client-{row}", *SESSION[1:]))
        self.write()
        self.known = self.waiting()
        self.logged: tuple[bytes, Waiting] | None = None

    def waiting(self) -> Waiting:
        found: Waiting = {}
        for row, session in self.sessions.items():
            found[row] = []
            for delivery, packet_id in session.deliveries:
                assert delivery.message is not None
                number = int(delivery.message.payload)
                if isinstance(delivery, Released):
                    found[row].append((number, "released", packet_id))
                else:
                    way = (delivery.exactly_once, delivery.retain, delivery.identifiers, delivery.share)
                    found[row].append((number, way, packet_id))
        return found

    def act(self, kind: str, seed: int) -> None:
        choice = random.Random(seed)
        part = choice.choice([0.01, 0.03, 0.5, 1.0])
        rows = [row for row in self.sessions if choice.random() < part]
        match kind:
            case "publish" | "again":
                self.publish(rows or [*self.sessions][:1], choice, again=kind == "again")
            case "acknowledge":  # Some sessions, each some of what it has, mostly the oldest.
                for row in rows:
                    has = self.sessions[row].deliveries
                    for _ in range(min(len(has), choice.randrange(4))):
                        self.finish(row, 0 if choice.random() < 0.8 else choice.randrange(len(has)))
            case "all" | "most":  # Of one message.
                message = choice.choice([None, *self.messages[-4:]])
                for row, session in self.sessions.items():
                    for place in reversed(range(len(session.deliveries))):
                        if session.deliveries[place][0].message is message and (kind == "all" or choice.random() < 0.9):
                            self.finish(row, place)
            case "advance" | "send":
                for row in rows:
                    (self.advance if kind == "advance" else self.send)(row, choice)
            case _:
                for row in rows[:2]:
                    self.end(row)

    def publish(self, rows: list[int], choice: random.Random, *, again: bool) -> None:
        """Give a new message to some sessions, or one *again* that others have, as a retained one."""
        if not again or not self.messages:
            self.count += 1
            self.messages.append(Message(b"t", b"%d" % self.count, 2))
        message = choice.choice(self.messages[-2:])
        ways = choice.sample(WAYS, choice.choice([1, 2, 2, 5]))
        for row in rows:
            stored = PersonalMessage(message, **choice.choice(ways))
            self.journal.add(row, stored)
            self.sessions[row].restore(stored, None)

    def end(self, row: int) -> None:
        self.journal.remove_session(row)
        while self.sessions[row].deliveries:
            self.finish(row, 0)
        del self.sessions[row]

    def finish(self, row: int, place: int) -> None:
        self.journal.remove(self.sessions[row].deliveries.pop(place)[0])

    def advance(self, row: int, choice: random.Random) -> None:
        """Take the first delivery at QoS 2 that goes on a step further, as the packets of its client would have it."""
        deliveries = self.sessions[row].deliveries
        for place, (delivery, packet_id) in enumerate(deliveries):
            if delivery.exactly_once and isinstance(delivery, PersonalMessage):
                if packet_id is None:
                    deliveries[place] = delivery, choice.randrange(1, 1 << 16)
                else:
                    deliveries[place] = Released(delivery.message, delivery.sequence), packet_id
                identifier = deliveries[place][1]
                assert identifier is not None
                self.journal.advance(delivery, identifier, released=packet_id is not None)
                return

    def send(self, row: int, choice: random.Random) -> None:
        """Send some deliveries at QoS 1, those that have waited longest."""
        deliveries = self.sessions[row].deliveries
        waiting = [place for place, (each, packet_id) in enumerate(deliveries) if packet_id is None]
        for place in waiting[: choice.randrange(1, 4)]:
            delivery, packet_id = deliveries[place][0], choice.randrange(1, 1 << 16)
            if isinstance(delivery, PersonalMessage) and not delivery.exactly_once:
                deliveries[place] = delivery, packet_id
                self.journal.sent(delivery, packet_id)

    def write(self, meanwhile: Any = None, *, late: bool = False, fails: bool = False, logged: bool = False) -> None:
        expected = self.waiting()
        batch = self.journal.take(probe=self.journal.failed)
        if batch is None:
            return
        database = Database(self.database.connection.serialize())
        if late and meanwhile is not None:
            self.act(*meanwhile)
        with closing(self.database.connection if not fails else database.connection):
            database.connection.execute("BEGIN")
            apply_changes(database.connection, batch)
            database.connection.execute("COMMIT")
            if not late and meanwhile is not None:
                self.act(*meanwhile)
            if fails:
                self.logged = (database.connection.serialize(), expected) if logged else None
                self.journal.not_written(0.0)
                return
        self.database, self.known, self.logged = database, expected, None
        self.journal.written()

    def kill(self) -> None:
        """Begin anew with what is stored, after a look at that."""
        if self.logged is not None:
            content, self.known = self.logged
            self.database.connection.close()
            self.database, self.logged = Database(content), None
        database = self.database
        query = "SELECT * FROM messages"
        messages = {number: Message(topic, payload, qos) for number, topic, payload, qos, *_ in database.each(query)}
        last = {table: next(database.each(f"SELECT coalesce(max(id), 0) FROM {table}"))[0] for table in LAST}
        self.journal = Journal(0.0, **{f"last_{name}": last[table] for table, name in LAST.items()})
        self.sessions = {row: Kept() for (row,) in database.each("SELECT id FROM sessions")}
        _deliveries(database, self.journal, self.sessions, messages, 0.0)  # type: ignore[arg-type]
        self.messages = list(messages.values())
        found = self.waiting()
        assert {row: alike(each) for row, each in found.items()} == {r: alike(each) for r, each in self.known.items()}
        needed = {number for each in found.values() for number, *_ in each}
        assert sorted(int(each.payload) for each in self.messages) == sorted(needed), "a message that nobody waits for"
        for table, what in NEVER_WRITTEN.items():
            assert list(database.each(f"SELECT * FROM {table} WHERE {what}")) == []
        for listed, left in database.each(
            "SELECT deliveries.places, remaining.places FROM remaining JOIN deliveries USING (id)"
        ):
            assert left.bit_count() * 4 > listed.bit_count(), "a row as long as if all were waiting"


LAST = {"sessions": "session", "messages": "message", "deliveries": "delivery"}


def alike(deliveries: list[tuple[Any, ...]]) -> list[tuple[int, list[str]]]:
    """Of one message that comes twice at once, in different ways, either may be first."""
    return [(number, sorted(map(str, each))) for number, each in groupby(deliveries, key=lambda each: each[0])]


@examples(100)
@given(st.lists(steps, min_size=30, max_size=50), st.booleans())
def test_what_sessions_wait_for_is_what_is_restored(walk: list[tuple[str, int]], in_order: bool) -> None:
    world = World()
    for kind, seed in walk:
        if kind == "kill":
            world.kill()
        elif kind in STORE:
            choice = random.Random(seed)
            meanwhile = (choice.choice(KINDS), seed // 2) if choice.random() < 0.7 else None
            world.write(meanwhile, late=choice.random() < 0.5, fails=kind != "write", logged=kind == "logged")
            if choice.random() < 0.3:
                world.kill()
        else:
            world.act(kind, seed)
    if in_order:
        world.write()
    world.kill()
    world.database.connection.close()
