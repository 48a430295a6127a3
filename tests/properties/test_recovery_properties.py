"""What is restored quickly is what is restored row by row: the state, and what is left in the store."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.process.recovery import recover
from broker.store import journal as journal_module
from broker.store.dispatch import packed
from broker.store.journal import Journal
from broker.store.sqlite import SqliteStore
from tests.support import restored_slowly
from tests.support.batches import TABLES
from tests.support.due import do_what_is_due
from tests.support.examples import examples
from tests.support.pki import DOMAIN
from tests.support.stored import WALL_OFFSET, StoredBroker
from tests.support.wire import MemoryBroker

NOW = 1000.0
FILTERS = ("fleet/#", "fleet/+/a/cmd/#", "fleet/g/a/cmd/1", "#", "/", "+", "$share/s/fleet/#", "$SYS/#", "fleet/g/+")
TOPICS = ("fleet", "fleet/g/a/cmd/1", "fleet/g/a/cmd", "fleet/g/b/state", "/", "a", "//", "fleet/", "a/b", "$SYS/x")
OWNERS = (
    *(f"spiffe://{DOMAIN}/device/{group}/{name}" for group in ("g", "h") for name in ("a", "b")),
    *(f"spiffe://{domain}/service/{name}" for domain in (DOMAIN, "plant-7.example") for name in ("a", "b")),
)
CERTIFICATES = ((None, None), ("aa:1f", "bb:cc"), ("aa:20", None))
Row = tuple[Any, ...]

times = st.sampled_from([NOW - 3600, NOW - 60, NOW - 30, NOW, NOW + 30]).map(lambda at: at + WALL_OFFSET)
maybe = st.none() | times
wills = st.none() | st.tuples(
    st.sampled_from(TOPICS[:4]).map(str.encode), st.just(b"gone"), st.integers(0, 2), st.integers(0, 1),
    st.just(b""), st.sampled_from([None, 20]), st.sampled_from([0, 45, 9000]),
)  # fmt: skip


@st.composite
def stores(draw: st.DrawFn) -> dict[str, list[Row]]:
    """Draw the contents of a database, as a broker may have left it."""
    made: dict[str, list[Row]] = {table: [] for table in TABLES}
    keys = draw(st.lists(st.tuples(st.sampled_from(["a", "b", "c/d"]), st.sampled_from(OWNERS)), unique=True))
    taken: set[tuple[str, ...]] = set()
    kept: list[int] = []
    for number, (client_id, owner) in enumerate(keys, 1):
        name = owner.split("/")[2], owner.split("/")[3], client_id
        expiry = draw(st.sampled_from([0, 45, 45, 7200, 0xFFFFFFFF]))
        will = draw(wills)
        if name in taken or (expiry == 0 and will is None):
            continue  # No broker would have left that.
        taken.add(name)
        left_with = draw(st.sampled_from(CERTIFICATES)) if will is not None else (None, None)
        cas = draw(st.sampled_from([None, "", "aa:1f bb:20"])) if will is not None else None
        certificate = draw(st.sampled_from(CERTIFICATES))
        columns = will or (None,) * 7
        made["sessions"].append((number, client_id, owner, draw(st.integers(0, 1)), expiry, draw(maybe), *columns,
                                 *certificate, *left_with, cas))  # fmt: skip
        if expiry == 0:
            continue
        for topic_filter in sorted(draw(st.sets(st.sampled_from(FILTERS), max_size=3))):
            pending = draw(st.sampled_from([0, 0, 3])) if not topic_filter.startswith("$share") else 0
            made["subscriptions"].append((number, topic_filter, draw(st.integers(0, 2)), 0, 1, 0, b"", pending))
            if pending:
                made["replayed"] += [(number, topic_filter, each) for each in draw(st.sets(st.integers(1, 3)))]
        kept.append(number)
        made["incoming"] += [(number, each) for each in draw(st.sets(st.integers(1, 3)))]
    draw_deliveries(draw, made, kept)
    publishers = ["", f"/device/{DOMAIN}/a", f"/device/{DOMAIN}/b", "service/a", f"/service/{DOMAIN}/a"]
    for number, topic in enumerate(draw(st.lists(st.sampled_from(TOPICS), unique=True)), 1):
        payload, by = b"r%d" % number, draw(st.sampled_from(publishers))
        made["retained"].append(
            (topic, topic.encode(), payload, draw(st.integers(0, 2)), 1, b"", draw(maybe), by, number)
        )
    return made


def draw_deliveries(draw: st.DrawFn, made: dict[str, list[Row]], sessions: list[int]) -> None:
    """Draw what those sessions are to get: at any places, some of them done, of the others some under way."""
    messages = draw(st.lists(st.tuples(st.sampled_from(TOPICS[:5]), maybe), max_size=5))
    referenced: set[int] = set()
    for number in range(1, draw(st.integers(0, 5)) + 1 if messages and sessions else 1):
        message = draw(st.integers(1, len(messages)))
        places = draw(st.sets(st.sampled_from([0, 1, 2, 40, 61]), min_size=1))
        left = draw(st.sets(st.sampled_from(sorted(places)), min_size=1))
        listed = [draw(st.sampled_from(sessions)) for _ in places]
        share = draw(st.sampled_from(["", "$share/s/fleet/#"]))
        bits = [sum(1 << place for place in each) for each in (places, left)]
        qos = draw(st.integers(1, 2))
        made["deliveries"].append((number, message, qos, 0, b"", share, bits[0], packed(listed)))
        if left < places:
            made["remaining"].append((number, bits[1]))
        for place in sorted(left):
            if draw(st.booleans()):
                sequence = number * 64 + place
                made["progress"].append((sequence, sequence, draw(st.integers(0, qos - 1))))
        referenced.add(message)
    made["messages"] = [
        (number, topic.encode(), b"m%d" % number, 2, 0, b"", at)
        for number, (topic, at) in enumerate(messages, 1)
        if number in referenced
    ]


@dataclass
class Restored:
    """A broker in memory, restored by one of both ways."""

    broker: MemoryBroker
    store: SqliteStore
    journal: Journal

    @classmethod
    def by(cls, way: Callable[..., Journal], directory: Path) -> Restored:
        broker = MemoryBroker()
        store = SqliteStore(directory / "broker.db")
        journal = way(broker.engine, store, NOW, NOW + WALL_OFFSET)
        do_what_is_due(broker.engine, NOW)
        while journal.lapsed:
            do_what_is_due(broker.engine, NOW)
        broker.settle()
        return cls(broker, store, journal)

    def state(self) -> Any:
        engine = self.broker.engine
        sessions = {
            each.name: (
                (each.owner, each.v5, each.expiry_interval, each.expires_at, each.certificate, each.authorities),
                (each.subscriptions, each.subscription_bytes, set(each.incoming or ())),
                (described_will(each.will), each.will_due_at, each.scheduled_at, each.row, each.journal is None),
                [described_delivery(one) for one in each.deliveries()],
            )
            for each in engine.registry.all()
        }
        retained = engine.retained
        kept = [(each.message.topic, each.message.payload, each.message.expires_at, each.publisher, each.number)
                for each in retained._messages.all()]  # fmt: skip
        routes = {
            topic: sorted(
                (str(getattr(one, "name", one)), repr(how)) for one, how in engine.routes[topic.encode()].recipients
            )
            for topic in TOPICS
        }
        unfinished = {
            session.name: [(each.subscription, each.newest, each._sent) for each in replays]
            for session, replays in engine.replays.waiting.items()
        }
        return (
            sessions, sorted(kept), (retained.count, retained._bytes, retained._of_devices, retained.last_number),
            routes, unfinished, engine.registry._instances, {each.name for each in engine.returning._awaited},
            (self.journal.earlier, self.journal.first_retained, self.broker.metrics.sessions_expired),
        )  # fmt: skip

    def written(self) -> Any:
        """Write all that there is to write; return every table, and close the database."""
        while (batch := self.journal.take()) is not None:
            self.store._apply(batch)
            self.journal.written()
        found = {table: sorted(self.store.rows(f"SELECT * FROM {table}"), key=repr) for table in TABLES}
        self.store.close()
        return found


def described_will(will: Any) -> Any:
    if will is None:
        return None
    message = will.message
    return (
        message.topic,
        message.payload,
        message.qos,
        will.delay,
        will.expiry_interval,
        will.certificate,
        will.authorities,
        None if will.above is None else will.above.path_revoked_as,
    )


def described_delivery(delivery: Any) -> Any:
    message = delivery.message
    return (type(delivery).__name__, delivery.sequence, delivery.topic, delivery.exactly_once, delivery.expires_at,
            getattr(delivery, "share", ""), message.references, message.row)  # fmt: skip


PENDING_OF_THE_EXPIRED: dict[str, list[Row]] = {table: [] for table in TABLES} | {
    "sessions": [(1, "a", f"spiffe://{DOMAIN}/device/g/a", 0, 45, 1_699_997_400.0, *[None] * 12)],
    "subscriptions": [(1, "fleet/#", 0, 0, 1, 0, b"", 3)],
}


@examples(40, of=100)
@given(stores())
@example(PENDING_OF_THE_EXPIRED)
def test_what_is_restored_quickly_is_what_is_restored_row_by_row(contents: dict[str, list[Row]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "one", Path(folder) / "other"
        for each in (one, other):
            each.mkdir()
        new_database(one, contents)
        shutil.copy(one / "broker.db", other / "broker.db")
        quick, slow = Restored.by(recover, one), Restored.by(restored_slowly.recover, other)
        assert quick.state() == slow.state()
        assert quick.written() == slow.written()


def new_database(directory: Path, contents: dict[str, list[Row]]) -> None:
    StoredBroker(directory).close()
    with closing(sqlite3.connect(directory / "broker.db")) as database:
        database.execute("PRAGMA journal_mode=DELETE")
        for table, rows in contents.items():
            for row in rows:
                database.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)
        database.commit()


@pytest.mark.skipif(not str(journal_module.__file__).endswith(".py"), reason="the size of a portion is compiled in")
def test_expired_sessions_leave_the_store_in_portions_and_are_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "LAPSED_AT_ONCE", 2)
    broker = StoredBroker(tmp_path)
    names = [f"service-{number}" for number in range(7)]
    for name in names:
        client = broker.service(name, session_expiry_interval=30)
        client.subscribe("fleet/#", qos=1)
        client.vanish()
    after = broker.killed(away=60)
    assert (len(after.engine.registry), after.engine.routes.subscription_count) == (0, 0)
    assert after.metrics.sessions_expired == 7
    after.settle()
    assert after.store.rows("SELECT count(*) FROM sessions") == [(5,)]
    left = [row[0] for row in after.store.rows("SELECT client_id FROM sessions")]
    client = after.service(left[0], session_expiry_interval=600, clean_start=False)
    client.vanish()
    after.advance(1)
    assert after.store.rows("SELECT count(*) FROM sessions") == [(3,)]
    after.advance(2)
    assert [row[0] for row in after.store.rows("SELECT client_id FROM sessions")] == [left[0]]
    assert after.store.rows("SELECT count(*) FROM subscriptions") == [(0,)]
    again = after.killed()
    assert [each.client_id for each in again.engine.registry.all()] == [left[0]]
    again.close()


def test_an_expired_session_of_another_owner_does_not_displace_who_has_its_name_now(tmp_path: Path) -> None:
    """Both are in the store if the broker ends between the new session and the removal of the old one."""
    uris = (f"spiffe://{DOMAIN}/device/meters/meter-1", f"spiffe://{DOMAIN}/device/old/meter-1")
    nothing = (None,) * 12
    for number, order in enumerate((uris, uris[::-1])):
        directory = tmp_path / str(number)
        directory.mkdir()
        rows = [
            (row, "meter-1", uri, 1, 60, NOW + WALL_OFFSET - (30 if uri == uris[0] else 3600), *nothing)
            for row, uri in enumerate(order, 1)
        ]
        new_database(directory, {"sessions": rows})
        broker = StoredBroker(directory)
        (session,) = broker.engine.registry.all()
        assert session.owner.uri == uris[0]
        broker.settle()
        assert broker.store.rows("SELECT owner FROM sessions") == [(uris[0],)]
        broker.close()
