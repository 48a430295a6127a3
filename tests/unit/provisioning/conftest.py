"""Every test of the parts behind the API runs on both stores."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fleet import Fleet, open_fleet
from tests.support.postgresql import PostgresqlServer


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a new store is; on PostgreSQL it has its schema already."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'fleet.db'}"
    server: PostgresqlServer = request.getfixturevalue("postgresql")
    return server.new_database()


@pytest.fixture
async def fleet(store_url: str) -> AsyncIterator[Fleet]:
    async with open_fleet(store_url) as opened:
        yield opened
