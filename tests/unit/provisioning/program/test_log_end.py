"""What a log lacks, that was cut or damaged, is what SQLite does not find there; and SQLite never says so."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from provisioning.program import log_end
from provisioning.program.log_end import Cut, cut
from provisioning.program.log_length import LogLength

PAGE: Final = 512
FRAME: Final = 24 + PAGE
ROWS: Final = 24
PARTS: Final = ("", "-wal", "-shm")
ALL: Final = 1.0


def left_by_a_kill(place: Path, moved: float) -> Path:
    live, left = place / "live", place / "left"
    with contextlib.closing(connected(live)) as database, contextlib.closing(connected(live)) as reader:
        for pragma in (f"page_size={PAGE}", "journal_mode=WAL", "wal_autocheckpoint=0", "synchronous=OFF"):
            database.execute(f"PRAGMA {pragma}")
        database.execute("CREATE TABLE facts (name TEXT PRIMARY KEY, content BLOB)")
        for number in range(ROWS):
            if number == ROWS * moved:  # What comes later cannot be moved.
                reader.execute("BEGIN")
                reader.execute("SELECT * FROM facts").fetchall()
            database.execute("INSERT INTO facts VALUES (?, ?)", (f"{number * 7 % ROWS}", os.urandom(200)))
        if moved:
            database.execute("PRAGMA wal_checkpoint(PASSIVE)")
        copy(live, left)
    return left


def connected(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None)


def beside(path: Path, end: str) -> Path:
    return path.with_name(path.name + end)


def copy(what: Path, to: Path, parts: tuple[str, ...] = PARTS) -> Path:
    for each in PARTS:
        beside(to, each).unlink(missing_ok=True)
    for each in parts:
        shutil.copy(beside(what, each), beside(to, each))
    return to


def missing(path: Path) -> Cut | None:
    return cut(beside(path, "-wal"), beside(path, "-shm"))


def rows(path: Path) -> int | None:
    """Return how many rows SQLite finds, None if the database is damaged."""
    try:
        with contextlib.closing(connected(path)) as database:
            if database.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
                return None
            return int(database.execute("SELECT count(*) FROM facts").fetchone()[0])
    except sqlite3.DatabaseError as error:
        return 0 if "no such table" in str(error) else None


@pytest.mark.parametrize("how", ["cut", "damaged"])
@pytest.mark.parametrize(("moved", "expected"), [(0, {"lost"}), (0.5, {"torn", "lost"}), (ALL, {"older"})])
def test_what_is_missing_is_said_and_what_must_not_be_read_with_the_file_is_told_apart(
    tmp_path: Path, moved: float, expected: set[str], how: str
) -> None:
    killed = left_by_a_kill(tmp_path, moved)
    assert missing(killed) is None
    pages = beside(killed, "-wal").stat().st_size // FRAME
    outcomes = set()
    for place in range(0, pages, 3):
        path = copy(killed, tmp_path / "cut")
        with beside(path, "-wal").open("r+b") as log:
            log.seek(32 + place * FRAME + 100)
            if how == "cut":
                log.truncate()
            else:
                log.write(b"damaged")
        if (found := missing(path)) is None:
            assert rows(path) == ROWS, "all is in the file, and the log has nothing"
            continue
        assert found.there <= place
        assert found.committed == pages
        outcome = "older" if found.is_older else "torn" if found.is_torn else "lost"
        outcomes.add(outcome)
        alone, together = rows(copy(path, tmp_path / "alone", ("",))), rows(path)
        assert outcome != "older" or (alone == ROWS != together)
        assert outcome != "lost" or (together is not None and together < ROWS)
    assert outcomes == expected


@pytest.mark.parametrize(("moved", "said"), [(0, Cut(0, 1, 0, 0)), (ALL, None)])
def test_an_emptied_log_lacks_what_is_not_in_the_file(tmp_path: Path, moved: float, said: Cut | None) -> None:
    path = left_by_a_kill(tmp_path, moved)
    committed = beside(path, "-wal").stat().st_size // FRAME
    for content in (b"", bytes(4096)):
        beside(path, "-wal").write_bytes(content)
        assert missing(path) == (said and said._replace(committed=committed))


def test_a_log_that_was_being_moved_is_all_that_makes_the_file_whole(tmp_path: Path) -> None:
    path = left_by_a_kill(tmp_path, 0)
    with beside(path, "-shm").open("r+b") as index:
        index.seek(128)
        index.write((20).to_bytes(4, "little"))
    assert missing(path) is None
    os.truncate(beside(path, "-wal"), 32 + 15 * FRAME)
    found = missing(path)
    assert found is not None
    assert (found.is_torn, found.is_older) == (True, False)


def test_nothing_is_said_of_a_log_whose_index_is_of_another_time_or_damaged(tmp_path: Path) -> None:
    path = left_by_a_kill(tmp_path, 0)
    index, log = beside(path, "-shm"), beside(path, "-wal")
    content = index.read_bytes()
    (tmp_path / "later").mkdir()
    shutil.copy(beside(left_by_a_kill(tmp_path / "later", 0), "-wal"), log)
    os.truncate(log, 32 + FRAME)
    assert missing(path) is None
    log.write_bytes(b"")
    assert missing(path) is not None
    for wrong in (b"", content[:100], content[:40] + b"other sums" + content[50:], bytes(len(content))):
        index.write_bytes(wrong)
        assert missing(path) is None
    index.write_bytes(content[:12] + b"\0" + content[13:60] + b"\0" + content[61:])
    assert missing(path) is None
    index.unlink()
    assert missing(path) is None


def test_of_a_database_that_is_open_nothing_is_said_and_its_locks_stay(tmp_path: Path) -> None:
    path = left_by_a_kill(tmp_path, 0)
    with contextlib.closing(connected(path)) as database:
        assert database.execute("SELECT count(*) FROM facts").fetchone() == (ROWS,)
        os.truncate(beside(path, "-wal"), 0)
        assert missing(path) is None
        os.close(log_end._kept.pop())


def test_what_a_process_has_locked_it_keeps_though_another_was_there_before_it(tmp_path: Path) -> None:
    """The system names one of those that have the database open, the first; the others lost their locks."""
    path = left_by_a_kill(tmp_path, 0)
    index = beside(path, "-shm")
    hold = "import fcntl,sys; f=open(sys.argv[1],'r+b'); fcntl.lockf(f,fcntl.LOCK_SH,1,128); print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-ISc", hold, index], stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        with contextlib.closing(connected(path)) as database:
            assert database.execute("SELECT count(*) FROM facts").fetchone() == (ROWS,)
            before = holders(index)
            assert missing(path) is None
            length = LogLength(beside(path, "-wal"))
            length.watch(index)
            with length.left(path, is_short=False):
                pass  # As another part of this process that closes it.
            assert holders(index) == before == {other.pid, os.getpid()}
        other.communicate(b"\n")
    for _ in range(2):
        os.close(log_end._kept.pop())


def holders(index: Path) -> set[int]:
    """Return the processes that share the lock of those who have the database open (proc(5))."""
    found = [each.split() for each in Path("/proc/locks").read_text().splitlines()]
    place = f":{index.stat().st_ino}"
    return {int(each[4]) for each in found if each[5].endswith(place) and each[6:] == ["128", "128"]}
