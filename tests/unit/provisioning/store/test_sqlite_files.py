"""A running service commits nothing into files that were deleted or replaced, and says if their log grows."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from provisioning.api.health import Readiness
from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.pki.role import Role
from provisioning.program import log_growth
from provisioning.program.file_identity import identity
from provisioning.store import devices, schema, sqlite_writer
from provisioning.store.database import Database
from provisioning.store.sqlite_files import SqliteFiles
from provisioning.store.sqlite_lane import SqliteLane

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet.db"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without a device: to make it takes longer than a test."""
    path = tmp_path_factory.mktemp("made") / "fleet.db"

    async def make() -> None:
        database = Database(f"sqlite:///{path}")
        await schema.upgrade(database)
        await database.close()

    asyncio.run(make())
    return path


@pytest.fixture
async def kept(path: Path, made: Path) -> AsyncIterator[Database]:
    """A store whose files are watched, with one device."""
    shutil.copy(made, path)
    database = Database(f"sqlite:///{path}")
    await add(database, "meter-1")
    database.keep_files()
    yield database
    await database.close()


async def add(database: Database, name: str, *, short: bool = False) -> None:
    await database.write(partial(devices.add, name=name, role=Role.DEVICE, group="north", now=NOW), short=short)


async def refused(database: Database) -> str:
    """Try to add a device, and return what the log says of it."""
    with capture_logs() as logs, pytest.raises(Refused) as caught:
        await add(database, "meter-2")
    assert caught.value.code is Code.UNAVAILABLE
    assert [each["code"] for each in logs] == ["STORE_FAILED"]
    return str(logs[0]["detail"])


def alone(path: Path, place: Path) -> list[str]:
    """Return the names of the devices that are in the file, without its log."""
    shutil.copy(path, place)
    return names_in(place)


def after_kill(path: Path, place: Path) -> list[str]:
    """Return the names of the devices that whoever opens the file and its log finds, after `kill -9`."""
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", f"{place}{suffix}")
    return names_in(place)


def names_in(place: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(place)) as database:
        return [name for (name,) in database.execute("SELECT name FROM devices ORDER BY name")]


@pytest.mark.parametrize("replaced", [False, True])
async def test_what_is_no_longer_there_is_not_written_and_what_is_back_is(
    kept: Database, path: Path, tmp_path: Path, replaced: bool
) -> None:
    away = tmp_path / "away"
    shutil.move(path, away)
    if replaced:
        shutil.copy(away, path)
    assert "fleet.db was deleted, or another file is in its place: put it back; or stop" in await refused(kept)
    shutil.move(away, path)
    await add(kept, "meter-2")
    assert (await kept.read(devices.count))[devices.DeviceState.ACTIVE] == 2


async def test_what_is_no_longer_there_is_told_to_who_asks_before_anything_is_written(
    kept: Database, path: Path, tmp_path: Path
) -> None:
    """It can be read on, so that `/readyz` said ok until the next device was refused."""
    ready = Readiness(kept, dict, list, {}, lambda: NOW).checks()["store"]
    assert await ready() == "ok"
    shutil.move(path, tmp_path / "away")
    with capture_logs() as logs:
        assert await ready() == "unavailable"
    assert [each["code"] for each in logs] == ["STORE_FAILED"]
    shutil.move(tmp_path / "away", path)
    assert await ready() == "ok"


async def test_if_the_log_is_deleted_all_that_was_committed_is_moved_into_the_file(
    kept: Database, path: Path, tmp_path: Path
) -> None:
    path.with_name("fleet.db-wal").unlink()
    assert "fleet.db-wal was deleted: nothing is lost; stop the service in order" in await refused(kept)
    assert alone(path, tmp_path / "alone") == ["meter-1"]


async def test_if_the_log_s_index_is_deleted_what_a_command_commits_is_not_written_over(
    kept: Database, path: Path, tmp_path: Path
) -> None:
    """The command makes an index of its own: the service would write its next changes where the command's are."""
    path.with_name("fleet.db-shm").unlink()
    renamed = await asyncio.create_subprocess_exec("sqlite3", path, "UPDATE devices SET name = 'meter-3'")
    assert await renamed.wait() == 0
    assert "fleet.db-shm was deleted: end the service by kill -9, for a stop in order would" in await refused(kept)
    assert after_kill(path, tmp_path / "killed") == ["meter-3"]


async def test_a_log_that_another_program_keeps_from_the_file_is_told_of(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It grew until the disk was full, and the first word was STORE_FAILED."""
    asked = []

    def counted(store: sqlite3.Connection, path: Path) -> str | None:
        asked.append(path)
        return log_growth.held_up(store, path)

    monkeypatch.setattr(log_growth, "_PAUSE_SECONDS", 3600)
    monkeypatch.setattr(sqlite_writer, "held_up", counted)
    database = Database(f"sqlite:///{path}")
    await schema.upgrade(database)
    lane = database._writer
    assert isinstance(lane, SqliteLane)
    growth = lane._writer._growth = log_growth.LogGrowth(path, sqlite_writer.log, unusual=100_000)  # type: ignore[misc]
    database.keep_files()

    async def grow(name: str) -> None:
        for number in range(12):
            await add(database, f"{name}-{number}")

    with capture_logs() as logs:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as shell:
            shell.execute("BEGIN")
            shell.execute("SELECT count(*) FROM devices").fetchone()
            await grow("a")
            assert len(asked) == 1, "it is moved as far as possible by each commit already"
        growth._asked = -math.inf
        await grow("b")
    await database.close()
    grows, moved = [each for each in logs if each.get("code", "").startswith("STORE_LOG_")]
    assert (grows["code"], grows["path"]) == ("STORE_LOG_GROWS", str(path))
    assert "another program reads fleet.db, and keeps SQLite from moving the log into it" in grows["detail"]
    assert moved["code"] == "STORE_LOG_MOVED"


@pytest.mark.parametrize("is_read", [False, True])
async def test_nothing_is_written_behind_the_end_of_a_log_that_was_emptied(
    kept: Database, path: Path, tmp_path: Path, is_read: bool
) -> None:
    """It was answered, from the second change on: SQLite writes on where it was, and finds nothing there later."""
    log = path.with_name("fleet.db-wal")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as shell:
        assert shell.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() == (0, 0, 0)
        assert log.stat().st_size == 0
        if is_read:
            shell.execute("BEGIN")
            shell.execute("SELECT count(*) FROM devices").fetchone()
        await add(kept, "meter-3")  # SQLite has emptied it itself.
        os.truncate(log, 0)
        assert "fleet.db-wal was emptied, or cut: what was committed last is lost" in await refused(kept)
        for name, short in (("meter-4", False), ("meter-5", True)):
            with pytest.raises(Refused):
                await add(kept, name, short=short)
    with pytest.raises(Refused):
        await add(kept, "meter-6")  # Nobody reads any more.
    assert after_kill(path, tmp_path / "killed") == ["meter-1"]


@contextlib.asynccontextmanager
async def moves_the_log(path: Path) -> AsyncIterator[None]:
    """Have another program hold the lock of whoever moves the log into the file (docs of SQLite's WAL mode, 2.3.2)."""
    hold = "import fcntl,sys; f=open(sys.argv[1],'r+b'); fcntl.lockf(f,fcntl.LOCK_EX,1,121); print(flush=True); input()"
    pipe = asyncio.subprocess.PIPE
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-ISc", hold, path.with_name("fleet.db-shm"), stdin=pipe, stdout=pipe
    )
    assert other.stdout is not None
    assert await other.stdout.readline() == b"\n"
    yield
    await other.communicate(b"\n")


@pytest.mark.parametrize("short", [False, True])
async def test_an_emptied_log_of_which_all_is_in_the_file_is_begun_anew(
    kept: Database, path: Path, tmp_path: Path, short: bool
) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("BEGIN")
        shell.execute("SELECT count(*) FROM devices").fetchone()
        with contextlib.closing(sqlite3.connect(path)) as other:
            busy, pages, moved = other.execute("PRAGMA wal_checkpoint").fetchone()
            assert (busy, moved) == (0, pages) != (0, 0)
        os.truncate(path.with_name("fleet.db-wal"), 0)
        async with moves_the_log(path):
            said = await refused(kept)
            assert "fleet.db-wal was emptied, or cut: nothing is lost, all of it is in the file; but" in said
        with pytest.raises(Refused):
            await add(kept, "meter-2", short=short)
    await add(kept, "meter-2", short=short)
    await add(kept, "meter-3", short=short)
    assert after_kill(path, tmp_path / "killed") == ["meter-1", "meter-2", "meter-3"]


async def test_what_is_left_of_a_log_that_was_moved_into_the_file_does_not_undo_it(
    kept: Database, path: Path, tmp_path: Path
) -> None:
    """SQLite takes it for all there is, and what is later in the file for older: revocations were gone."""
    length = path.with_name("fleet.db-wal").stat().st_size
    await add(kept, "meter-2")
    other = left_by_a_kill(path, tmp_path / "said")
    os.truncate(other.with_name("fleet.db-wal"), length)
    assert await told_at_start(other) == ["STORE_LOG_MISSING"]
    assert names_in(other) == ["meter-1"]
    with contextlib.closing(sqlite3.connect(path)) as shell:
        busy, pages, moved = shell.execute("PRAGMA wal_checkpoint").fetchone()
        assert (busy, moved) == (0, pages)
    other = left_by_a_kill(path, tmp_path / "refused")
    os.truncate(other.with_name("fleet.db-wal"), length)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=r"nothing is lost if fleet\.db-wal, fleet\.db-shm and fle"):
            Database(f"sqlite:///{other}")
    for end in ("-wal", "-shm", "-files"):
        other.with_name(f"fleet.db{end}").unlink()
    assert await told_at_start(other) == []
    assert names_in(other) == ["meter-1", "meter-2"]


def content(path: Path) -> bytes:
    return path.read_bytes()


def left_by_a_kill(path: Path, place: Path) -> Path:
    place.mkdir()
    for each in path.parent.glob("fleet.db*"):
        shutil.copy(each, place)
    return place / path.name


@pytest.mark.parametrize("noticed", [False, True])
async def test_what_is_left_of_a_log_that_was_cut_is_not_moved_into_the_file(
    path: Path, made: Path, noticed: bool
) -> None:
    """Of the transaction that was cut in two some pages were, and the others were not there."""
    shutil.copy(made, path)
    database = Database(f"sqlite:///{path}")
    await add(database, "meter-1")
    database.keep_files()
    before = content(path)
    length = path.with_name("fleet.db-wal").stat().st_size
    await add(database, "meter-2")
    os.truncate(path.with_name("fleet.db-wal"), length + 5000)
    if noticed:
        assert "fleet.db-wal was emptied, or cut: what was committed last is lost" in await refused(database)
    with capture_logs() as logs:
        await database.close()
    assert [each["code"] for each in logs] == ["STORE_FAILED"]
    assert content(path) == before
    assert await told_at_start(path) == ["STORE_LOG_MISSING"]
    assert names_in(path) == ["meter-1"]


@pytest.mark.parametrize("left", ["part", "nothing"])
async def test_what_is_lost_is_told_by_the_service_too_whoever_opens_the_store_before_it(
    kept: Database, path: Path, tmp_path: Path, left: str
) -> None:
    """A command took what was left in, and with it every trace of what was not: a revocation was gone silently."""
    length = path.with_name("fleet.db-wal").stat().st_size
    await add(kept, "meter-2")
    other = left_by_a_kill(path, tmp_path / "killed")
    SqliteFiles(other).keep()  # As the service does that is killed then.
    if left == "part":
        os.truncate(other.with_name("fleet.db-wal"), length)
    else:
        other.with_name("fleet.db-wal").unlink()
    said = set()
    for _ in range(2):
        command = Database(f"sqlite:///{other}")
        assert (await command.read(devices.count))[devices.DeviceState.ACTIVE] == (left == "part")
        said.add(command.doubt)
        await command.close()
    assert len(said) == 1
    assert None not in said
    assert await told_at_start(other) == ["STORE_LOG_MISSING"]
    assert await told_at_start(other) == []


@pytest.mark.usefixtures("kept")
async def test_a_store_is_not_opened_with_the_log_of_another(path: Path, tmp_path: Path) -> None:
    Database(f"sqlite:///{path}")  # As the commands do meanwhile.
    shutil.copy(path, tmp_path / "copy")
    shutil.move(tmp_path / "copy", path)
    with pytest.raises(ConfigurationError, match=r"is not the file that fleet\.db-wal beside it belongs to"):
        Database(f"sqlite:///{path}")
    shutil.move(path, tmp_path / "away")
    with pytest.raises(ConfigurationError, match=r"is missing, or empty, but not fleet\.db-wal beside it"):
        Database(f"sqlite:///{path}")
    shutil.copytree(tmp_path, tmp_path / "elsewhere")
    with pytest.raises(ConfigurationError, match="is missing"):
        Database(f"sqlite:///{tmp_path / 'elsewhere' / path.name}")


async def test_a_copy_of_all_files_is_as_good_as_they_are(kept: Database, path: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    shutil.copytree(path.parent, other)
    database = Database(f"sqlite:///{other / path.name}")
    with capture_logs() as logs:
        database.keep_files()
    await add(database, "meter-2")
    await database.close()
    assert logs == []
    assert (await kept.read(devices.count))[devices.DeviceState.ACTIVE] == 1


async def test_an_orderly_end_leaves_no_names(path: Path) -> None:
    database = Database(f"sqlite:///{path}")
    await schema.upgrade(database)
    database.keep_files()
    names = path.with_name("fleet.db-files")
    assert len(names.read_text().split()) == 3
    assert names.stat().st_mode & 0o777 == 0o600
    await database.close()
    assert not names.exists()


async def told_at_start(path: Path) -> list[str]:
    """Start and end, and return the codes of what was said."""
    database = Database(f"sqlite:///{path}")
    with capture_logs() as logs:
        database.keep_files()
    await database.close()
    return [each["code"] for each in logs]


async def test_whoever_still_reads_at_the_orderly_end_takes_the_log_in(path: Path) -> None:
    """As `sqlite3 fleet.db .backup` does, which takes a while: nothing of that is a loss."""
    database = Database(f"sqlite:///{path}")
    await schema.upgrade(database)
    database.keep_files()
    with contextlib.closing(sqlite3.connect(path)) as backup:
        assert backup.execute("SELECT count(*) FROM devices").fetchone() == (0,)
        await add(database, "meter-1")
        await database.close()
        assert path.with_name("fleet.db-wal").exists()
    assert not path.with_name("fleet.db-wal").exists()
    assert await told_at_start(path) == []
    assert alone(path, path.with_name("alone")) == ["meter-1"]


@pytest.mark.usefixtures("kept")
async def test_a_log_that_is_gone_after_a_kill_is_said_and_one_that_a_command_has_taken_in_is_not(
    path: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    shutil.copytree(path.parent, killed, ignore=shutil.ignore_patterns("killed"))
    other = killed / path.name
    SqliteFiles(other).keep()  # As the service does that is killed then.
    command = Database(f"sqlite:///{other}")
    assert (await command.read(devices.count))[devices.DeviceState.ACTIVE] == 1
    await command.close()
    assert not other.with_name("fleet.db-files").exists()
    assert await told_at_start(other) == []
    shutil.copy(path.with_name("fleet.db-wal"), other.with_name("fleet.db-wal"))
    SqliteFiles(other).keep()
    other.with_name("fleet.db-wal").unlink()
    assert await told_at_start(other) == ["STORE_LOG_MISSING"]


def link(path: Path, to: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(to)


async def test_a_store_behind_a_link_is_watched_where_it_is(path: Path, tmp_path: Path) -> None:
    """SQLite follows the link, and has its log there."""
    (tmp_path / "disk").mkdir()
    real = tmp_path / "disk" / "data.db"
    link(path, real)
    database = Database(f"sqlite:///{path}")
    await schema.upgrade(database)
    database.keep_files()
    assert sorted(each.name for each in real.parent.iterdir()) == [
        "data.db",
        "data.db-files",
        "data.db-shm",
        "data.db-wal",
    ]
    shutil.copy(real, tmp_path / "backup")
    log = real.with_name("data.db-wal")
    away = shutil.move(log, tmp_path / "away")
    assert "data.db-wal was deleted" in await refused(database)
    shutil.move(away, log)
    link(path, tmp_path / "backup")
    assert "another file is in its place" in await refused(database)
    link(path, real)
    real.unlink()
    shutil.copy(tmp_path / "backup", real)
    with pytest.raises(ConfigurationError, match=r"is not the file that data\.db-wal beside it belongs to"):
        Database(f"sqlite:///{path}")
    log.unlink()
    Database(f"sqlite:///{path}")
    await database.close()


def test_a_store_that_has_no_log_can_be_replaced(path: Path, tmp_path: Path) -> None:
    """SQLite keeps none where the file system shares no memory."""
    path.write_bytes(b"one")
    SqliteFiles(path).keep()
    (tmp_path / "backup").write_bytes(b"another")
    shutil.move(tmp_path / "backup", path)
    assert SqliteFiles(path).doubt is None


def test_where_inodes_are_numbered_anew_at_each_mount_nothing_is_compared(path: Path) -> None:
    """As in some containers, in the order of look-ups: the log may have its old number, the file another."""
    path.write_bytes(b"store")
    log, names = path.with_name("fleet.db-wal"), path.with_name("fleet.db-files")
    log.write_bytes(b"log")
    SqliteFiles(path).keep()
    names.write_text(f"2:0.0 1:0.0 {identity(log)}\n")
    assert SqliteFiles(path).doubt is None
    names.write_text(f"{identity(names)} 1:0.0 {identity(log)}\n")
    with pytest.raises(ConfigurationError, match=r"remove fleet\.db-files"):
        SqliteFiles(path)
