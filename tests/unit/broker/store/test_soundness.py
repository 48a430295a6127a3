"""What ``--test-config`` finds out about a database, in the words of a start, and without a trace of its own."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from broker.store.database_files import StoreError
from broker.store.schema import VERSION
from broker.store.soundness import look
from broker.store.sqlite import SqliteStore
from tests.support.batches import filled
from tests.support.stored import StoredBroker

LAST = (1 << 63) - 1
"""The last number that a row can have: the next one's is an exception at each write."""
WITHOUT_ITS_ROWS = "DELETE FROM subscriptions; DELETE FROM incoming; DELETE FROM replayed"


def changed(path: Path, statements: str) -> None:
    with sqlite3.connect(path) as database:
        database.executescript(statements)
    database.close()


def closed(path: Path) -> None:
    SqliteStore(path).close()


def another_log(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    (path.parent / "another").touch()  # So that the inode number is another one on any file system.
    path.write_bytes(content)


def without_file(path: Path) -> None:
    path.unlink()


def of_another_program(path: Path) -> None:
    changed(path, "CREATE TABLE notes (text)")


def of_a_later_schema(path: Path) -> None:
    closed(path)
    changed(path, f"PRAGMA user_version={VERSION + 1}")


def of_no_schema(path: Path) -> None:
    closed(path)
    changed(path, "PRAGMA user_version=-1")


def damaged(path: Path) -> None:
    store = SqliteStore(path)
    store._apply(filled())
    store._database.executescript("PRAGMA foreign_keys=OFF; DELETE FROM sessions")
    store.close()


def changed_bits(path: Path) -> None:
    store = SqliteStore(path)
    store._apply(filled())
    store._database.execute("UPDATE deliveries SET qos = 3")
    store.close()


def of_a_name_that_is_no_text(path: Path) -> None:
    closed(path)
    unnamed = "UPDATE sqlite_schema SET name = CAST(x'8e' AS TEXT), sql = 'x' WHERE name = 'incoming'"
    changed(path, f"PRAGMA writable_schema=ON; {unnamed}")


def no_database(path: Path) -> None:
    path.write_bytes(b"sessions, messages" * 1000)


def traces(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {each.name: (each.read_bytes(), each.stat().st_mtime_ns) for each in directory.iterdir()}


def refusal(attempt: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(StoreError) as refused:
        attempt(path)
    return str(refused.value)


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("sessions", "expiry_interval = -1"),
        ("sessions", "ended_at = 9e999"),
        ("sessions", f"id = {LAST}; {WITHOUT_ITS_ROWS}"),
        ("sessions", "will_topic = x'74', will_payload = x'', will_retain = 0, will_properties = x'', will_delay = 0"),
        ("sessions", "will_topic = x'74', will_payload = x'', will_retain = 0, will_properties = x'', will_qos = 1"),
        ("subscriptions", "qos = 3"),
        ("subscriptions", "retain_handling = 3"),
        ("subscriptions", f"pending = {LAST}"),
        ("messages", f"id = {LAST}"),
        ("messages", "qos = -1"),
        ("messages", "topic = x''"),
        ("messages", "expires_at = 9e999"),
        ("deliveries", f"id = {LAST} WHERE id = 9"),
        ("deliveries", "qos = 0"),
        ("deliveries", "places = 0"),
        ("deliveries", "sessions = x'00'"),
        ("remaining", "places = 4"),
        ("remaining", "id = 8"),
        ("progress", "packet_id = 65536"),
        ("progress", "released = 3"),
        ("progress", "sequence = 640"),
        ("progress", "sequence = 577"),
        ("incoming", "packet_id = 0"),
        ("retained", f"number = {LAST}"),
        ("retained", "topic = x'75'"),
        ("retained", "expires_at = -9e999"),
    ],
)
def test_a_value_that_no_broker_writes_is_refused_before_it_is_restored(
    tmp_path: Path, table: str, change: str
) -> None:
    """It was restored, and was an exception of its session whenever the client connected, or a traceback at once."""
    path = tmp_path / "broker.db"
    store = SqliteStore(path)
    store._apply(filled())
    store.close()
    closed(path)
    changed(path, f"UPDATE {table} SET {change}")
    assert f"it is damaged (a row of {table} has a value that is never written); move it away" in refusal(
        SqliteStore, path
    )


@pytest.mark.parametrize(
    "spoil",
    [
        of_another_program,
        of_a_later_schema,
        of_no_schema,
        damaged,
        changed_bits,
        of_a_name_that_is_no_text,
        no_database,
    ],
)
def test_what_a_start_would_refuse_is_said_in_its_words(tmp_path: Path, spoil: Callable[[Path], None]) -> None:
    path = tmp_path / "broker.db"
    spoil(path)
    before = traces(tmp_path)
    said = refusal(look, path)
    assert traces(tmp_path) == before
    assert said == refusal(SqliteStore, path)
    assert str(path) in said
    assert look(path, inside=False) is None, "it is read once, not for each question"


@pytest.mark.parametrize("spoil", [another_log, without_file])
def test_a_log_that_belongs_to_another_file_is_said(killed: Path, spoil: Callable[[Path], None]) -> None:
    spoil(killed)
    before = traces(killed.parent)
    said = refusal(look, killed)
    assert traces(killed.parent) == before
    assert said == refusal(SqliteStore, killed)


def test_a_log_that_is_gone_is_a_doubt_as_long_as_it_is(killed: Path) -> None:
    killed.with_name("broker.db-wal").unlink()
    for _ in range(2):
        assert (look(killed) or "").startswith("broker.db-wal is gone since the broker was killed")
    closed(killed)
    assert look(killed) is None


@pytest.mark.parametrize("made", ["nothing", "an empty file", "an empty database", "a database", "a killed one's"])
def test_what_a_broker_can_open_is_fine_and_stays_as_it_is(killed: Path, tmp_path: Path, made: str) -> None:
    (place := tmp_path / "place").mkdir()
    path = place / "broker.db"
    if made == "an empty file":
        path.touch()
    elif made == "an empty database":
        changed(path, "VACUUM")
    elif made == "a database":
        closed(path)
    elif made == "a killed one's":
        for end in ("db", "db-wal", "db-shm", "lock"):
            shutil.copy(killed.with_name(f"broker.{end}"), place)
    before = traces(place)
    assert look(path) is None
    assert traces(place) == before


def test_a_broker_that_runs_is_not_disturbed_and_nothing_is_said_of_its_database(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "broker.db")
    store._apply(filled())
    before = traces(tmp_path)
    assert look(store.path) is None
    assert traces(tmp_path) == before
    assert "in use by another broker" in refusal(SqliteStore, store.path), "its lock is still its own"
    store._apply(filled())
    store.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's rights are tried")
@pytest.mark.parametrize("end", ["db", "lock"])
def test_a_file_that_may_only_be_read_is_said(end: str) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        path = Path(name) / "broker.db"
        closed(path)
        path.with_suffix(f".{end}").chmod(0o400)
        for each in (path.parent, path, path.with_suffix(".lock")):
            os.chown(each, 65534, 65534)
        os.seteuid(65534)
        try:
            assert f"broker.{end}'; see that this user can write it" in refusal(look, path)
        finally:
            os.seteuid(0)


def test_pages_that_cannot_be_read_are_said_too(tmp_path: Path) -> None:
    broker = StoredBroker(tmp_path)
    meter = broker.device("meter-1")
    for number in range(100):
        meter.publish(f"fleet/meters/meter-1/{number}", bytes(500), qos=1, retain=True)
    broker.store.close()
    path = broker.directory / "broker.db"
    content = path.read_bytes()
    path.write_bytes(content[: 12 * 4096] + b"A" * (len(content) - 12 * 4096))
    with pytest.raises(
        StoreError, match=r"it is damaged \(.*\); move it away, with broker.db-wal and -shm, or put back"
    ):
        SqliteStore(path)
