"""A store that is just being closed, after its service was killed: what is no loss is not told, and a true one is."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path

import pytest

from provisioning.store.database import Database
from provisioning.store.sqlite_files import SqliteFiles


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet.db"


def after_a_kill(path: Path) -> sqlite3.Connection:
    """Return a connection of a command to a store whose service was killed."""
    database = sqlite3.connect(path, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("CREATE TABLE devices (name)")
    SqliteFiles(path).keep()  # As the service does that is killed then.
    return database


def test_a_log_that_a_command_is_just_taking_in_is_no_loss(path: Path) -> None:
    """Whoever opened the store before the command had removed the names noted a loss, and each start told of it."""
    database = after_a_kill(path)
    command = SqliteFiles(path)
    with contextlib.suppress(KeyboardInterrupt), command.closing():
        database.close()
        assert not path.with_name("fleet.db-wal").exists()
        meanwhile = SqliteFiles(path)  # However long the system lets the command wait.
        assert meanwhile.doubt is None
        raise KeyboardInterrupt  # It is killed here.
    with meanwhile.closing():
        meanwhile.closed()
    assert not path.with_name("fleet.db-files").exists()
    command.closed()
    assert SqliteFiles(path).doubt is None


def test_a_log_that_a_command_has_taken_in_is_no_loss_though_another_has_made_the_next(path: Path) -> None:
    """The names stayed, and nobody matched them any more: with the third command's end the log was said to be gone."""
    database = after_a_kill(path)
    command = SqliteFiles(path)
    with command.closing():
        database.close()
        second, other = SqliteFiles(path), sqlite3.connect(path)
        other.execute("DELETE FROM devices")
        command.closed()
    third = SqliteFiles(path)
    with second.closing():
        second.closed()
    with third.closing():
        other.close()
        third.closed()
    assert SqliteFiles(path).doubt is None
    assert not path.with_name("fleet.db-files").exists()


def test_the_names_of_a_service_stay_if_somebody_has_deleted_its_log_and_a_command_made_another(path: Path) -> None:
    """The service may be killed, and what is in the deleted log is lost then."""
    path.write_bytes(b"store")
    log = path.with_name("fleet.db-wal")
    log.write_bytes(b"log")
    SqliteFiles(path).keep()
    command = SqliteFiles(path)
    (path.with_name("other")).write_bytes(b"other")
    path.with_name("other").rename(log)
    with command.closing():
        command.closed()
    log.unlink()
    assert "fleet.db-wal is gone" in (SqliteFiles(path).doubt or "")


async def test_a_close_that_is_cancelled_is_finished(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Ctrl-C, while a long log was taken in: the names stayed, and the next start told of a loss."""
    database = after_a_kill(path)
    command = Database(f"sqlite:///{path}")
    begun, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def dispose() -> None:
        loop.call_soon_threadsafe(begun.set)
        assert go_on.wait(5)
        database.close()

    monkeypatch.setattr(command._writer, "dispose", dispose)
    closing = asyncio.create_task(command.close())
    await begun.wait()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    go_on.set()
    await loop.shutdown_default_executor()  # As asyncio.run does.
    assert not path.with_name("fleet.db-files").exists()
    assert SqliteFiles(path).doubt is None


def test_a_log_that_a_command_has_taken_in_without_forgetting_the_names_is_said(path: Path) -> None:
    """It was killed in between: nobody can tell that from a log that somebody has deleted."""
    path.write_bytes(b"store")
    log = path.with_name("fleet.db-wal")
    log.write_bytes(b"log")
    SqliteFiles(path).keep()
    with contextlib.suppress(KeyboardInterrupt), SqliteFiles(path).closing():
        log.unlink()
        assert SqliteFiles(path).doubt is None
        raise KeyboardInterrupt
    assert "fleet.db-wal is gone" in (SqliteFiles(path).doubt or "")
