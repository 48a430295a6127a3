"""Whoever starts the service, or runs a command on its machine, is told who is in the way, and what to do."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.store import schema, sqlite_group
from provisioning.store.database import Database
from provisioning.store.usable import reported, usable


async def test_a_lock_of_another_program_is_said_with_who_to_ask_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a start one was to look at the file's owner and the disk; a ceremony only said that one should try again."""
    path = tmp_path / "fleet.db"
    database = Database(f"sqlite:///{path}")
    await schema.upgrade(database)
    monkeypatch.setattr(sqlite_group, "PATIENCE_MILLISECONDS", 1)
    remedy = f"end its transaction (a sqlite3 shell, a backup): fuser -v {path} names those that have it open"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as shell:
        shell.execute("BEGIN IMMEDIATE")
        for told, begins in ((usable, "database_url: the database "), (reported, "sqlite:///")):
            with pytest.raises(ConfigurationError) as caught, told(database):
                await schema.upgrade(database)
            assert str(caught.value).startswith(begins)
            assert str(caught.value).endswith(
                f"database is locked: another program keeps others from writing; {remedy}"
            )
    with reported(database):
        await schema.upgrade(database)
    await database.close()


async def test_a_file_of_another_user_is_said_with_whose_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One was to look at the owner of the store, and it was a file beside it that belonged to another."""
    path, index = tmp_path / "fleet.db", tmp_path / "fleet.db-shm"
    index.mkdir()  # So that SQLite cannot open it, whoever runs this.
    monkeypatch.setattr(os, "access", lambda file, *_, **__: file != index)
    database = Database(f"sqlite:///{path}")
    ours = os.geteuid()
    for user, remedy in ((ours, f"chmod u+rw {index}"), (ours + 54321, f"chown {ours + 54321} {index}")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        told = f"; {index} belongs to .*, and .* may not read and write it: {re.escape(remedy)}"
        with pytest.raises(ConfigurationError, match=told), usable(database):
            await schema.upgrade(database)
    await database.close()


@pytest.mark.parametrize("said", ["sorry, too many clients already", 'too many connections for role "fleet"'])
def test_a_server_without_a_connection_for_us_is_not_to_be_started(said: str) -> None:
    refusal = Refused(Code.UNAVAILABLE, "the store cannot be used now")
    refusal.__cause__ = OperationalError("", None, sqlite3.OperationalError(f"connection failed: FATAL: {said}"))
    with (
        pytest.raises(ConfigurationError, match=f"{said}: raise max_connections, or see who has them: SELECT"),
        usable(Database("postgresql+psycopg://fleet@127.0.0.1:9/fleet")),
    ):
        raise refusal
