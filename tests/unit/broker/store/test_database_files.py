"""A database and its log belong together: what is deleted, replaced or damaged is said, and nothing lost in silence."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from broker.store.batch import Batch
from broker.store.database_files import StoreError, log_of
from broker.store.journal import Journal
from broker.store.soundness import look
from broker.store.sqlite import SqliteStore
from provisioning.program.file_identity import identity
from tests.support.batches import contents, filled

_SECOND = """
import pathlib, sys
from broker.store.database_files import StoreError
from broker.store.soundness import look
from broker.store.sqlite import SqliteStore
path = pathlib.Path(sys.argv[1])
print(look(path))
try:
    SqliteStore(path)
except StoreError as refused:
    print(refused)
"""

OF_ANOTHER = r"not the file that broker\.db-wal beside it belongs to: .* remove broker\.db-wal and broker\.db-shm"


def beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def opened(path: Path) -> tuple[list[str], int]:
    """Open the database, and close it; return the codes of what the log says of it, and how many sessions it has."""
    with capture_logs() as logs:
        store = SqliteStore(path)
        ((sessions,),) = store.rows("SELECT count(*) FROM sessions")
        store.close()
    return [each["code"] for each in logs], int(sessions)


def without_log(path: Path, place: Path) -> int:
    """Return how many sessions there are in the file alone."""
    place.mkdir()
    shutil.copy(path, place / path.name)
    return opened(place / path.name)[1]


def alone(path: Path, table: str) -> int:
    """Return how many rows are in the file."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


def checkpoint_by_another(path: Path) -> None:
    """Have another program move the log into the file, and empty it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as shell:
        assert shell.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
    assert beside(path, "-wal").stat().st_size == 0


# Under way


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_no_longer_there_is_not_written_and_one_that_is_back_is(
    store: SqliteStore, tmp_path: Path, replaced: bool
) -> None:
    away = tmp_path / "away"
    store._apply(filled())
    store.path.rename(away)
    if replaced:
        shutil.copy(away, store.path)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"broker\.db was deleted, or another file is in its place: put it back"):
            store._apply(Batch(done=[(9,)]))
    away.rename(store.path)
    store._apply(Batch(done=[(9,)], remaining={10: 0}))
    assert store.rows("SELECT * FROM deliveries") == []


def test_a_directory_that_was_moved_away_under_way_is_said_with_a_remedy(store: SqliteStore, tmp_path: Path) -> None:
    """The lock file, which cannot be made again there, was all that was said."""
    away = tmp_path.with_name(f"{tmp_path.name}-away")
    store._apply(filled())
    tmp_path.rename(away)
    with pytest.raises(StoreError, match=r"broker\.db was deleted, or another file is in its place: put it back"):
        store._apply(Batch(done=[(9,)]))
    away.rename(tmp_path)
    store._apply(Batch(done=[(9,)], remaining={10: 0}))
    assert store.rows("SELECT * FROM deliveries") == []


def test_if_the_log_is_deleted_all_that_was_written_is_in_the_file_already(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "broker.db")
    store._apply(filled())
    beside(store.path, "-wal").unlink()
    assert without_log(store.path, tmp_path / "before") == 0
    with pytest.raises(StoreError, match=r"broker\.db-wal was deleted: nothing is lost; stop the broker in order"):
        store._apply(Batch(sessions={1: None}))
    assert without_log(store.path, tmp_path / "after") == 1
    store.close()
    assert opened(store.path) == ([], 1)


def test_if_the_log_s_index_is_deleted_nothing_is_written_that_others_may_be_reading(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "broker.db")
    store._apply(filled())
    beside(store.path, "-shm").unlink()
    with pytest.raises(StoreError, match=r"broker\.db-shm was deleted: nothing is lost; stop the broker in order"):
        store._apply(Batch(sessions={1: None}))
    store.close()
    assert opened(store.path) == ([], 1)


CUT = r"broker\.db-wal was emptied, or cut: what was written last is lost, acknowledged messages among it\. Stop the"


async def test_nothing_is_written_behind_the_end_of_a_log_that_was_emptied(tmp_path: Path, journal: Journal) -> None:
    """It was acknowledged, until the file was found to be damaged: SQLite writes on where it was."""
    store = SqliteStore(tmp_path / "broker.db")
    store.attach(journal, asyncio.get_running_loop(), lambda: None, lambda: None)
    store._apply_timed(filled())
    checkpoint_by_another(store.path)
    store._apply_timed(Batch(done=[(9,)]))  # SQLite has emptied it itself.
    beside(store.path, "-wal").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(StoreError, match=CUT):
            store._apply_timed(Batch(sessions={1: None}))
    journal.remove_session(1)
    with capture_logs() as logs:
        store.close()
    assert [each["code"] for each in logs] == ["STORE_FAILED"]
    assert re.search(CUT, logs[0]["detail"])
    assert opened(store.path) == (["STORE_LOG_MISSING"], 1)


def test_what_is_left_of_a_log_that_was_cut_is_not_moved_into_the_file(tmp_path: Path) -> None:
    """Of the transaction that was cut in two some pages were, and the others were not there."""
    store = SqliteStore(tmp_path / "broker.db")
    checkpoint_by_another(store.path)
    before = store.path.read_bytes()
    store._apply_timed(filled())
    log = beside(store.path, "-wal")
    kept = log.stat().st_size
    store._apply_timed(Batch(retained={"much": (b"much", bytes(50_000), 1, True, b"", None, "device/m", 4)}))
    os.truncate(log, kept + 20_000)
    with pytest.raises(StoreError, match=CUT):
        store._apply(Batch(sessions={1: None}))
    store.close()
    assert store.path.read_bytes() == before
    assert opened(store.path) == (["STORE_LOG_MISSING"], 1)
    assert opened(store.path) == ([], 1)


@pytest.mark.parametrize("by_sqlite", [True, False])
def test_what_is_under_way_when_the_log_becomes_empty_is_written_only_if_sqlite_has_emptied_it(
    store: SqliteStore, by_sqlite: bool
) -> None:
    store._apply(filled())
    log = beside(store.path, "-wal")
    length = log.stat().st_size
    looks = store._database.set_trace_callback

    def empty(statement: str) -> None:
        if statement == "BEGIN IMMEDIATE" and by_sqlite:
            looks(None)
            checkpoint_by_another(store.path)
        elif statement.startswith("DELETE FROM sessions") and not by_sqlite:
            log.write_bytes(b"")

    looks(empty)
    with contextlib.nullcontext() if by_sqlite else pytest.raises(StoreError, match=CUT):
        store._apply(Batch(sessions={1: None}))
    if by_sqlite:
        assert store.rows("SELECT * FROM sessions") == []
        assert log.stat().st_size < length


def test_a_backup_that_is_put_in_its_place_under_way_is_not_mixed_with_the_log(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "broker.db")
    copy = tmp_path / "copy"
    shutil.copy(store.path, copy)
    store._apply(filled())
    store.path.unlink()
    shutil.copy(copy, store.path)
    store.close()
    with pytest.raises(StoreError, match=OF_ANOTHER):
        SqliteStore(store.path)


# At a start


def test_what_was_killed_is_opened_without_a_word_and_so_is_a_copy_of_it(killed: Path, tmp_path: Path) -> None:
    shutil.copytree(killed.parent, tmp_path / "copy")
    assert opened(tmp_path / "copy" / killed.name) == ([], 1)
    assert opened(killed) == ([], 1)


def test_an_empty_store_is_said(tmp_path: Path) -> None:
    assert opened(tmp_path / "broker.db") == (["STORE_CREATED"], 0)
    assert opened(tmp_path / "broker.db") == ([], 0)


@pytest.mark.parametrize("emptied", [False, True])
def test_a_log_whose_file_is_missing_is_kept(killed: Path, emptied: bool) -> None:
    file, away = killed.read_bytes(), killed.with_name("away")
    if emptied:
        killed.write_bytes(b"")
    else:
        killed.rename(away)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"broker\.db is missing, or empty, but not broker\.db-wal beside it: put"):
            SqliteStore(killed)
    if emptied:
        killed.write_bytes(file)
    else:
        away.rename(killed)
    assert opened(killed) == ([], 1)


def test_a_log_that_is_gone_since_a_kill_is_said(killed: Path) -> None:
    beside(killed, "-wal").unlink()
    assert opened(killed) == (["STORE_LOG_MISSING"], 0)
    assert opened(killed) == ([], 0), "once"


def test_what_is_left_of_a_log_that_was_moved_into_the_file_does_not_undo_it(
    store: SqliteStore, tmp_path: Path
) -> None:
    """SQLite takes it for all there is, and what comes later in the file for older."""
    store._apply(filled())
    kept = beside(store.path, "-wal").stat().st_size
    store._apply(Batch(retained={"t": None}))
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as shell:
        busy, pages, moved = shell.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        assert (busy, moved) == (0, pages)
    shutil.copytree(tmp_path, tmp_path / "killed")
    killed = tmp_path / "killed" / store.path.name
    os.truncate(beside(killed, "-wal"), kept)
    refused = (
        r"broker\.db-wal was cut, or damaged: of \d+ pages .* nothing is lost if broker\.db-wal, broker\.db-shm and"
    )
    for refuses in (look, SqliteStore):
        with pytest.raises(StoreError, match=refused):
            refuses(killed)
    for end in ("-wal", "-shm"):
        beside(killed, end).unlink()
    killed.with_suffix(".lock").unlink()
    assert opened(killed) == ([], 1)
    assert alone(killed, "retained") == 0


def test_a_log_that_was_cut_since_a_kill_is_said_unless_the_file_has_parts_of_it(killed: Path, tmp_path: Path) -> None:
    log, index = beside(killed, "-wal"), beside(killed, "-shm")
    os.truncate(log, 32 + 24 + 4096)
    shutil.copytree(killed.parent, torn := tmp_path / "torn")
    with beside(torn / killed.name, "-shm").open("r+b") as shared:
        shared.seek(128)
        shared.write((2).to_bytes(4, sys.byteorder))  # As while SQLite moves them.
    with pytest.raises(StoreError, match=r"may have parts of what is missing: put the log back, or a backup .*db-shm"):
        SqliteStore(torn / killed.name)
    assert index.exists()
    assert opened(killed) == (["STORE_LOG_MISSING"], 0)


def test_a_backup_is_not_mixed_with_the_log_of_the_file_that_it_replaces(killed: Path, tmp_path: Path) -> None:
    """On ext4 it may have its inode number, too."""
    backup = tmp_path / "backup"
    SqliteStore(backup).close()
    content = backup.read_bytes()
    killed.unlink()
    killed.write_bytes(content)
    for _ in range(2):
        with pytest.raises(StoreError, match=OF_ANOTHER):
            SqliteStore(killed)
    assert killed.read_bytes() == content
    for end in ("-wal", "-shm"):
        beside(killed, end).unlink()
    assert opened(killed) == ([], 0)


def test_a_database_behind_a_link_is_looked_after_where_it_is(tmp_path: Path) -> None:
    """SQLite follows the link, and has its log there: a restored copy was refused, with a log that was not there."""
    real, path = tmp_path / "data.db", tmp_path / "broker.db"
    path.symlink_to(real)
    store = SqliteStore(path)
    copy = real.read_bytes()
    store._apply(filled())
    noted = real.with_suffix(".lock").read_text()
    log = beside(real, "-wal").rename(tmp_path / "log")
    with pytest.raises(StoreError, match=r"data\.db-wal was deleted: nothing is lost"):
        store._apply(Batch(sessions={1: None}))
    log.rename(beside(real, "-wal"))
    real.rename(tmp_path / "away")
    real.write_bytes(copy)
    store.close()
    real.with_suffix(".lock").write_text(noted)  # As if it had been killed.
    with pytest.raises(StoreError, match=r"remove data\.db-wal and data\.db-shm"):
        SqliteStore(path)
    beside(real, "-wal").unlink()
    assert opened(path) == ([], 0)


def test_two_links_to_one_database_exclude_each_other_and_the_file_itself(tmp_path: Path) -> None:
    """Each had a lock file of its own, by the link's name: two brokers wrote into one database."""
    real, links = tmp_path / "data.db", [tmp_path / "one" / "broker.db", tmp_path / "two" / "broker.db"]
    for each in links:
        each.parent.mkdir()
        each.symlink_to(real)
    store = SqliteStore(links[0])
    for each in (links[1], real):
        with pytest.raises(StoreError, match="is in use by another broker"):
            SqliteStore(each)
        assert look(each) is None, "nothing is said of a database that a broker has open"
    store.close()
    assert opened(links[1]) == ([], 0)


def test_a_database_that_has_no_log_can_be_replaced(tmp_path: Path) -> None:
    """SQLite keeps none where the file system shares no memory."""
    path = tmp_path / "broker.db"
    SqliteStore(path).close()
    path.with_suffix(".lock").write_text(f"{identity(path)} -\n")
    path.rename(tmp_path / "away")
    shutil.copy(tmp_path / "away", path)
    assert opened(path) == ([], 0)


def test_where_inodes_are_numbered_anew_at_each_mount_nothing_is_compared(killed: Path) -> None:
    """As in some containers, in the order of look-ups: the log may have its old number, the file another."""
    lock = killed.with_suffix(".lock")
    its_log = identity(log_of(killed))
    for own in (identity(lock), None):  # One of an earlier version does not name itself.
        lock.write_text(f"1:0.0 {its_log} {own or ''}\n")
        with pytest.raises(StoreError, match=OF_ANOTHER):
            SqliteStore(killed)
    lock.write_text(f"1:0.0 {its_log} 2:0.0\n")
    assert opened(killed) == ([], 1)


def test_a_lock_file_that_says_something_else_is_no_matter(killed: Path) -> None:
    killed.with_suffix(".lock").write_bytes(b"\xff of another version")
    assert opened(killed) == ([], 1)
    assert killed.with_suffix(".lock").read_bytes() == b""


@pytest.mark.parametrize("library", [{"statx": lambda *_: -1}, {}], ids=["file system", "C library"])
def test_who_does_not_know_when_a_file_was_made_is_no_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: dict[str, object]
) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda _: SimpleNamespace(**library))
    assert opened(tmp_path / "broker.db") == (["STORE_CREATED"], 0)


def test_a_lock_that_was_deleted_is_made_again(tmp_path: Path, store: SqliteStore) -> None:
    lock = store.path.with_suffix(".lock")
    lock.unlink()
    store._apply(filled())
    assert lock.read_text() == f"{identity(store.path)} {identity(log_of(store.path))} {identity(lock)}\n"
    with pytest.raises(StoreError, match="in use by another broker"):
        SqliteStore(tmp_path / "broker.db")


@pytest.mark.parametrize("lock_file", ["there", "deleted", "of another name"])
def test_no_second_broker_opens_the_database_by_whichever_name_and_whatever_became_of_the_lock_file(
    tmp_path: Path, store: SqliteStore, lock_file: str
) -> None:
    """Where the lock file was another, or a new one, both wrote, each over what the other remembered."""
    store._apply(filled())
    path = store.path
    if lock_file == "of another name":
        (path := tmp_path / "other.db").hardlink_to(store.path)
    elif lock_file == "deleted":
        path.with_suffix(".lock").unlink()
    before = contents(store)
    second = subprocess.run([sys.executable, "-c", _SECOND, path], check=True, capture_output=True, text=True)
    assert second.stdout.splitlines() == ["None", f"{path} is in use by another broker: give each its own state_dir"]
    assert contents(store) == before
    assert not beside(path, "-wal").exists() or path == store.path, "it has not come as far as SQLite"
    for _ in range(2):
        store._apply(Batch(retained={"t": None}))
    store.close()
    assert opened(path) == ([], 1)


def test_where_the_kernel_knows_no_such_lock_the_lock_file_excludes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> bytes:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(fcntl, "fcntl", unknown)
    with contextlib.closing(SqliteStore(tmp_path / "broker.db")) as store:
        with pytest.raises(StoreError, match="in use by another broker"):
            SqliteStore(store.path)
        assert look(store.path) is None
    assert look(store.path) is None


def test_a_lock_that_was_away_for_a_moment_is_not_taken_for_another_broker_s(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own lock kept it from the lock, and the database was given up for good."""
    lock, stat = store.path.with_suffix(".lock"), Path.stat
    missed: list[Path] = []

    def once_away(path: Path, **options: bool) -> os.stat_result:
        if path == lock and not missed:
            missed.append(path)
            raise FileNotFoundError(path)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", once_away)
    store._apply(filled())
    assert missed == [lock]
    store._apply(Batch(retained={"t": None}))


# What is in it


@pytest.mark.parametrize(
    "damage",
    [
        "rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'messages')",
        "sql = replace(sql, 'qos INTEGER', 'qos TEXT')",
    ],
    ids=["a page of another table", "a value of another type"],
)
def test_a_damaged_database_is_refused_before_anything_is_served(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "broker.db"
    store = SqliteStore(path)
    store._apply(filled())
    store._database.executescript(
        f"PRAGMA writable_schema=ON; UPDATE sqlite_schema SET {damage} WHERE name = 'retained'"
    )
    store.close()
    with pytest.raises(StoreError, match=r"it is damaged|malformed") as refused:
        SqliteStore(path)
    assert "move it away, with broker.db-wal and -shm, or put back a backup" in str(refused.value)


def test_an_index_that_lacks_a_row_is_damage(tmp_path: Path) -> None:
    """Nothing that is read at the start would show it: the second session of one name would."""
    path = tmp_path / "broker.db"
    store = SqliteStore(path)
    store._apply(filled())
    ((root,),) = store.rows("SELECT rootpage FROM sqlite_schema WHERE name = 'sqlite_autoindex_sessions_1'")
    store.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\x0a\0\0\0\0\x10\0\0")  # A leaf of an index without cells.
    with pytest.raises(StoreError, match=r"it is damaged \(.* index sqlite_autoindex_sessions_1\)"):
        SqliteStore(path)


def test_a_row_that_refers_to_none_is_damage(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "broker.db")
    store._apply(filled())
    store._database.executescript("PRAGMA foreign_keys=OFF; DELETE FROM sessions")
    store.close()
    with pytest.raises(StoreError, match=r"it is damaged \(a row of \w+ refers to none of sessions\)"):
        SqliteStore(tmp_path / "broker.db")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user's rights are tried")
def test_a_file_that_may_only_be_read_is_refused_at_the_start() -> None:
    """It was opened, and each write of it refused, from the first message on."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        path = Path(name) / "broker.db"
        SqliteStore(path).close()
        path.chmod(0o400)
        for each in (path.parent, path, path.with_suffix(".lock")):
            os.chown(each, 65534, 65534)
        os.seteuid(65534)
        try:
            with pytest.raises(StoreError, match=r"Permission denied.*; see that this user can write it"):
                SqliteStore(path)
        finally:
            os.seteuid(0)
