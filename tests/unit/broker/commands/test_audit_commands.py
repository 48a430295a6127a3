"""``fleet-broker audit show``: an entry is found by the text that it shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.audit.files import opened_files
from broker.cli import app

CLIENTS = ("zähler-1", 'a"b\\c', "\U0001f4a1", "plain")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    files = opened_files(path, tmp_path / "audit.key", 1_000_000, 2)
    files.append([(1_700_000_000.0, {"event": "refused", "client": client}) for client in CLIENTS])
    files.close()
    return path


@pytest.mark.parametrize(
    ("about", "found"),
    [
        ("zähler", [0]),
        ('a"b\\c', [1]),
        ("\U0001f4a1", [2]),
        ("plain", [3]),
        ('"event":"refused"', [0, 1, 2, 3]),  # As it is in the file, and with --json.
        ("zähler-2", []),
    ],
)
def test_entries_are_found_by_what_they_show(log: Path, about: str, found: list[int]) -> None:
    done = CliRunner().invoke(app, ["audit", "show", about, "--log", str(log)])
    assert done.exit_code == 0, done.output
    assert [line.rpartition("client=")[2] for line in done.stdout.splitlines()] == [CLIENTS[each] for each in found]
