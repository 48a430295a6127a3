"""How long a group is open: as long as its predecessor's commit took, up to a limit; a slow disk has larger ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.engine import Connection

from provisioning.store import postgresql_lane, sqlite_lane
from provisioning.store.database import Database
from provisioning.store.postgresql_group import SharedTransaction
from provisioning.store.sqlite_writer import SqliteWriter

SLOW = 1.0
"""Seconds: long enough for three works that do nothing, whatever else the machine does."""


class Disk:
    """Says how long a commit takes, and counts them."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.commits = 0

    def commit(self) -> None:
        self.commits += 1
        time.sleep(self.seconds)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """What the commits of either store wait for; a group ends at once but for what its predecessor's commit took."""
    slow = Disk()
    for module, name in (
        (sqlite_lane, "_GROUP_SECONDS"),
        (postgresql_lane, "_ALONE_SECONDS"),
        (postgresql_lane, "_GROUP_SECONDS"),
    ):
        monkeypatch.setattr(module, name, 0.0)
    for kind in (SqliteWriter, SharedTransaction):
        commit = kind.commit

        def slowly(committing: object, commit: object = commit) -> None:
            slow.commit()
            commit(committing)  # type: ignore[operator]

        monkeypatch.setattr(kind, "commit", slowly)
    return slow


@pytest.fixture
async def database(store_url: str) -> AsyncIterator[Database]:
    opened = Database(store_url)
    yield opened
    await opened.close()


def work(_connection: Connection) -> None:
    """Do nothing."""


async def transactions_of_three(database: Database, disk: Disk) -> int:
    disk.commits = 0
    await asyncio.gather(*(database.write(work) for _ in range(3)))
    return disk.commits


async def test_a_group_is_open_for_as_long_as_the_commit_before_it_took(
    database: Database, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (sqlite_lane, postgresql_lane):
        monkeypatch.setattr(module, "_LONGEST_GROUP_SECONDS", 60.0)
    disk.seconds = SLOW
    await database.write(work)
    disk.seconds = 0.0
    assert await transactions_of_three(database, disk) == 1
    assert 0.0 <= database._writer._commit_seconds < 60.0, "it was fast"  # type: ignore[attr-defined]
    for module in (sqlite_lane, postgresql_lane):
        monkeypatch.setattr(module, "_LONGEST_GROUP_SECONDS", 0.0)
    assert await transactions_of_three(database, disk) == 3, "whatever it took"
