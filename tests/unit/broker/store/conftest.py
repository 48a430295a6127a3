"""A database, and a journal with whoever waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.store.journal import Journal
from broker.store.sqlite import SqliteStore
from tests.support.batches import Ear


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "broker.db")
    yield opened
    opened.close()


@pytest.fixture
def journal() -> Journal:
    return Journal(100.0, last_session=7, last_message=40)


@pytest.fixture
def ear() -> Ear:
    return Ear()
