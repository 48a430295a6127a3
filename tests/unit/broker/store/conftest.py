"""A database, and a journal with whoever waits for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.store.journal import Journal
from broker.store.sqlite import SqliteStore
from tests.support.batches import Ear

_KILLED = """
import os, pathlib, sys
from broker.store.sqlite import SqliteStore
from tests.support.batches import filled
SqliteStore(pathlib.Path(sys.argv[1]))._apply(filled())
os._exit(9)
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "broker.db")
    yield opened
    opened.close()


@pytest.fixture
def journal() -> Journal:
    return Journal(100.0, last_session=7, last_message=40, last_delivery=30)


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """The database of a process that was killed when it had written a batch."""
    path = tmp_path / "broker.db"
    SqliteStore(path).close()
    assert subprocess.run([sys.executable, "-c", _KILLED, path], check=False).returncode == 9
    return path
