"""The one PostgreSQL server of a test worker, started when the first test asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgresql import PostgresqlServer


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with PostgresqlServer() as server:
        yield server
