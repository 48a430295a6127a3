"""A broker in memory, and one with a store, for tests that need no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stored import StoredBroker
from tests.support.wire import MemoryBroker


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[StoredBroker]:
    opened = StoredBroker(tmp_path)
    yield opened
    opened.close()
