"""The schema of the broker's database: older ones are brought up to date, others refused."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest

from broker.mqtt.packets import Pubcomp, Publish, Pubrec, Pubrel
from broker.store.batch import Batch
from broker.store.database_files import StoreError
from broker.store.dispatch import packed
from broker.store.schema import MIGRATIONS
from broker.store.sqlite import SqliteStore
from tests.support.batches import SESSION, TABLES
from tests.support.stored import StoredBroker
from tests.support.wire import KEPT


def test_another_schema_is_refused_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match=r"broker\.db has schema 99, this broker knows 9: use the broker that made it"):
        SqliteStore(path)
    SqliteStore(tmp_path / "other.db").close()


def test_a_database_of_an_older_broker_is_brought_up_to_date(tmp_path: Path, store: SqliteStore) -> None:
    path = tmp_path / "older.db"
    schema = Path(__file__).with_name("schema_1.sql").read_text(encoding="utf-8")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(f"BEGIN; {schema} PRAGMA user_version=1; COMMIT;")
        database.execute("INSERT INTO sessions VALUES (1, 'm', 'o', 1, 60, NULL, x'74', x'01', 1, 0, x'', 90, 3)")
        database.execute("INSERT INTO subscriptions VALUES (1, 'fleet/#', 1, 0, 0, 0, x'')")
        database.execute("INSERT INTO messages VALUES (7, x'74', x'01', 1, 0, x'', NULL)")
        database.execute("INSERT INTO deliveries VALUES (1, 1, 7, 1, 0, x'', NULL, 0)")
        for topic in ("t", "a"):
            database.execute("INSERT INTO retained VALUES (?, ?, x'01', 1, 1, x'', NULL)", (topic, topic.encode()))
        database.commit()
    for _ in range(2):  # Once brought up to date, opened as it is.
        older = SqliteStore(path)
        assert older.rows("SELECT will_topic, will_expiry_interval, will_delay FROM sessions") == [(b"t", 90, 3)]
        assert older.rows("SELECT * FROM subscriptions") == [(1, "fleet/#", 1, 0, 0, 0, b"", 0)]
        assert older.rows("SELECT * FROM deliveries") == [(1, 7, 1, 0, b"", "", 1, packed([1]))]
        assert older.rows("SELECT topic_name, publisher, number FROM retained") == [("a", "", 1), ("t", "", 2)]
        assert older.rows("PRAGMA user_version") == [(9,)]
        for table in TABLES:
            assert older.rows(f"PRAGMA table_info({table})") == store.rows(f"PRAGMA table_info({table})")
            assert older.rows(f"PRAGMA foreign_key_list({table})") == store.rows(f"PRAGMA foreign_key_list({table})")
        older.close()


def test_a_database_of_the_very_first_brokers_is_brought_up_to_date_too(tmp_path: Path, store: SqliteStore) -> None:
    # Schema 1 was another on its first day: opened by a later broker, it could not be written any more.
    path = tmp_path / "first.db"
    schema = Path(__file__).with_name("schema_1.sql").read_text(encoding="utf-8")
    schema = schema.replace("will_expiry_interval INTEGER", "will_expires_at REAL").replace(
        "client_id TEXT NOT NULL,", "client_id TEXT NOT NULL UNIQUE,"
    )
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(f"BEGIN; {schema} PRAGMA user_version=1; COMMIT;")
        database.execute("INSERT INTO sessions VALUES (1, 'm', 'o', 1, 60, NULL, x'74', x'01', 1, 0, x'', 12, 3)")
        database.execute("INSERT INTO subscriptions VALUES (1, 'fleet/#', 1, 0, 0, 0, x'')")
        database.commit()
    for _ in range(2):
        older = SqliteStore(path)
        (row,) = older.rows("SELECT id, client_id, will_topic, will_expiry_interval, will_delay FROM sessions")
        assert row == (1, "m", b"t", None, 3)
        assert older.rows("PRAGMA foreign_keys") == [(1,)], "off while that was done"
        assert older.rows("SELECT session, topic_filter FROM subscriptions") == [(1, "fleet/#")]
        for table in TABLES:
            assert older.rows(f"PRAGMA table_info({table})") == store.rows(f"PRAGMA table_info({table})")
            assert older.rows(f"PRAGMA foreign_key_list({table})") == store.rows(f"PRAGMA foreign_key_list({table})")
        assert len(older.rows("PRAGMA index_list(sessions)")) == len(store.rows("PRAGMA index_list(sessions)"))
        older.close()
    with contextlib.closing(sqlite3.connect(path)) as database:  # Those that refer to it go with it.
        database.execute("PRAGMA foreign_keys=ON")
        database.execute("DELETE FROM sessions")
        assert database.execute("SELECT count(*) FROM subscriptions").fetchone() == (0,)


def test_what_an_older_broker_owed_without_the_message_is_owed_no_more(tmp_path: Path) -> None:
    """It could remove a message that others were still to get, and did not start again."""
    path = tmp_path / "broker.db"
    schema = Path(__file__).with_name("schema_1.sql").read_text(encoding="utf-8")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(f"BEGIN; {schema} PRAGMA user_version=1; COMMIT;")
        database.execute("INSERT INTO sessions VALUES (1, 'm', 'o', 1, 60, NULL, x'74', x'01', 1, 0, x'', 90, 3)")
        database.execute("INSERT INTO messages VALUES (7, x'74', x'01', 1, 0, x'', NULL)")
        for sequence, message in ((1, 6), (2, 7), (3, 8)):
            database.execute("INSERT INTO deliveries VALUES (1, ?, ?, 1, 0, x'', NULL, 0)", (sequence, message))
        database.commit()
    store = SqliteStore(path)
    assert store.rows("SELECT id, message FROM deliveries") == [(1, 7)]
    store.close()


def test_of_a_session_of_an_older_broker_it_is_not_known_who_stood_above_its_certificate(tmp_path: Path) -> None:
    """As the broker before this one left its database, with a client that is connected and has a will."""
    path = tmp_path / "broker.db"
    schema = Path(__file__).with_name("schema_1.sql").read_text(encoding="utf-8")
    upgrades = " ".join(MIGRATIONS[version] for version in (1, 2, 3))
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(f"BEGIN; {schema} {upgrades} PRAGMA user_version=4; COMMIT;")
        row = (1, "m", "o", 1, 60, None, b"t", b"x", 1, 0, b"", None, 30, "ab:1f")
        database.execute("INSERT INTO sessions VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)", row)
        database.commit()
    store = SqliteStore(path)
    assert store.rows("SELECT will_topic, will_delay, certificate, authorities FROM sessions") == [
        (b"t", 30, "ab:1f", None)
    ]
    store._apply(Batch(sessions={1: (*SESSION[:-5], "ab:1f", "ab:cd", None, None, None)}))
    assert store.rows("SELECT certificate, authorities FROM sessions") == [("ab:1f", "ab:cd")]
    store.close()


@pytest.mark.parametrize(
    ("version", "in_the_way"),
    [
        (1, "CREATE VIEW mine AS SELECT will_expires_at FROM sessions"),
        (2, "CREATE TABLE replayed (session INTEGER)"),
    ],
    ids=["of the very first", "of an older"],
)
def test_an_upgrade_that_fails_in_the_middle_leaves_the_older_broker_s_database_as_it_was(
    tmp_path: Path, version: int, in_the_way: str
) -> None:
    """As a full disk would, but at a known place. Its last statement fails; those before it have been undone."""
    path = tmp_path / "broker.db"
    schema = Path(__file__).with_name("schema_1.sql").read_text(encoding="utf-8")
    if version == 1:
        schema = schema.replace("will_expiry_interval INTEGER", "will_expires_at REAL")
    upgrades = " ".join(MIGRATIONS[each] for each in range(1, version))

    def dump() -> list[str]:
        with contextlib.closing(sqlite3.connect(path)) as database:
            return [*database.iterdump(), str(database.execute("PRAGMA user_version").fetchone())]

    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(f"BEGIN; {schema} {upgrades} PRAGMA user_version={version}; {in_the_way}; COMMIT;")
        database.execute("INSERT INTO sessions VALUES (1, 'm', 'o', 1, 60, NULL, x'74', x'01', 1, 0, x'', 12, 3)")
        database.execute("INSERT INTO messages VALUES (7, x'74', x'01', 1, 0, x'', NULL)")
        database.execute("INSERT INTO deliveries VALUES (1, 1, 7, 1, 0, x'', NULL, 0)")
        database.commit()
    before = dump()
    with pytest.raises(StoreError, match="cannot be used as the broker's database"):
        SqliteStore(path)
    assert dump() == before


def test_what_was_being_replayed_by_an_older_broker_is_replayed_up_to_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    schema = Path(__file__).with_name("schema_1.sql").read_text(encoding="utf-8")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(f"BEGIN; {schema} {MIGRATIONS[1]} PRAGMA user_version=2; COMMIT;")
        database.execute("INSERT INTO sessions VALUES (1, 'm', 'o', 1, 60, NULL, NULL, NULL, 0, 0, NULL, NULL, NULL)")
        database.execute(
            "INSERT INTO subscriptions VALUES (1, 'a/#', 1, 0, 0, 0, x'', 1), (1, 'b', 1, 0, 0, 0, x'', 0)"
        )
        retained = "INSERT INTO retained VALUES (?, CAST(? AS BLOB), x'01', 1, 1, x'', NULL, '')"
        database.executemany(retained, [(f"a/{n}",) * 2 for n in range(9)])
        database.commit()
    store = SqliteStore(path)
    assert store.rows("SELECT topic_filter, pending FROM subscriptions") == [("a/#", 9), ("b", 0)]
    store.close()


def test_what_waited_or_was_under_way_with_an_older_broker_goes_on(tmp_path: Path) -> None:
    """It had a row for each session."""
    path = tmp_path / "broker.db"
    dump = Path(__file__).with_name("schema_7.sql").read_text(encoding="utf-8")
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(f"BEGIN; {dump} PRAGMA user_version=7; CREATE TABLE progress (mine); COMMIT;")
        before = [*database.iterdump()]
        with pytest.raises(StoreError, match="table progress already exists"):
            SqliteStore(path)
        assert [*database.iterdump()] == before, "in one transaction"
        database.executescript("DROP TABLE progress")
    broker = StoredBroker(tmp_path)
    away, worker = (broker.service(name, **KEPT) for name in ("away", "worker"))
    for client in (away, worker):
        messages = client.messages()
        assert [each.payload for each in messages] == [b"0", b"1", b"2", b"3"]
        assert [each.properties.subscription_identifiers for each in messages] == [(7,) if client is worker else ()] * 4
        client.acknowledge(*messages[:3])
    there = broker.service("there", **KEPT, receive_maximum=2)
    first, second = there.received()
    assert first == Pubrel(1), "what it has received is not sent again"
    assert (second.payload, second.packet_id, second.dup) == (b"1", 2, True)  # type: ignore[union-attr]
    there.send(Pubcomp(1), Pubrec(2), Pubcomp(2))
    assert [each.payload for each in there.received() if isinstance(each, Publish)] == [b"2", b"3"]
    worker.leave(session_expiry_interval=0)
    after = broker.killed()
    assert after.store.rows("SELECT message, qos, share FROM deliveries") == [(3, 1, ""), (4, 1, ""), (4, 2, "")]
    assert after.service("away", **KEPT).payloads() == [b"3"]
    assert sorted(after.service("there", **KEPT).payloads()) == [b"2", b"3"]
    after.close()


@pytest.mark.parametrize("version", [0, 1, 4])
def test_another_programs_database_is_left_alone(tmp_path: Path, version: int) -> None:
    path = tmp_path / "broker.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(f"CREATE TABLE users (name); PRAGMA user_version={version};")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="it is another program's; move it away"):
        SqliteStore(path)
    assert path.read_bytes() == before
    assert sorted(each.name for each in tmp_path.iterdir()) == ["broker.db", "broker.lock"]
