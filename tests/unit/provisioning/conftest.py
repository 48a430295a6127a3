"""Every test of the parts behind the API runs on both stores."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from provisioning.ca.ceremony import Authority
from provisioning.store import schema
from provisioning.store.database import Database
from tests.support.fleet import Fleet, new_authority, open_fleet
from tests.support.postgresql import PostgresqlServer


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its schema and no rows: migrating one for each test takes longer than most tests."""
    path = tmp_path_factory.mktemp("template") / "fleet.db"
    asyncio.run(_make(path))
    return path


async def _make(path: Path) -> None:
    database = Database(f"sqlite:///{path}")
    await schema.upgrade(database)
    await database.close()
    assert [each.name for each in path.parent.iterdir()] == [path.name], "all of it is in the one file"


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """Where a new store is, in SQLite's file ``fleet.db``; it has its schema already."""
    shutil.copyfile(sqlite_template, tmp_path / "fleet.db")
    return f"sqlite:///{tmp_path / 'fleet.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where a new store is; it has its schema already (that it is made: `store/test_schema.py`)."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_url")
        return
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    with server.database() as url:
        yield url


@pytest.fixture(scope="session")
def authority() -> Authority:
    """The keys and certificates of every `fleet`: founding it is nothing that its tests try."""
    return new_authority()


@pytest.fixture
async def fleet(store_url: str, authority: Authority) -> AsyncIterator[Fleet]:
    async with open_fleet(store_url, authority, is_current=True) as opened:
        yield opened
