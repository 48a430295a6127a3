"""The one PostgreSQL server of a test worker, started when the first test asks for it; and its garbage collector."""

from __future__ import annotations

import gc
from collections.abc import Generator, Iterator

import pytest

from tests.support.postgresql import PostgresqlServer


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without collections of garbage: all that is imported and collected lasts to the end.

    Nor is it looked through for garbage while tests run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    with PostgresqlServer() as server:
        yield server
