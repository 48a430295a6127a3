"""``fleet-broker audit show``: an entry is found by the text that it shows."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from broker.audit.files import opened_files
from broker.cli import app

MOMENTS = (1_700_000_000.0, 1_700_000_000.25, 1_700_003_600.0, 1_700_100_000.0)
"""From 2023-11-14 22:13:20 on, an hour later, and two days later at 02:00."""
CLIENTS = ("zähler-1", 'a"b\\c', "\U0001f4a1", "plain")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    files = opened_files(path, tmp_path / "audit.key", 1_000_000, 2)
    files.append([(at, {"event": "refused", "client": client}) for at, client in zip(MOMENTS, CLIENTS, strict=True)])
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


@pytest.mark.parametrize(
    ("bounds", "found"),
    [
        (["--since", "2023-11-15"], [3]),
        (["--until", "2023-11-15"], [0, 1, 2]),
        (["--since", "2023-11-14 22:13:20.250 UTC"], [1, 2, 3]),
        (["--until", "2023-11-14T22:13:20.25Z"], [0]),
        (["--since", "2023-11-15T00:13:20+01:00", "--until", "2023-11-16"], [2]),
        (["--since", "2024-01-01"], []),
    ],
)
def test_entries_are_found_by_their_time(log: Path, bounds: list[str], found: list[int]) -> None:
    done = CliRunner().invoke(app, ["audit", "show", "--log", str(log), *bounds])
    assert done.exit_code == 0, done.output
    shown = [line.partition("client=")[2] for line in done.stdout.splitlines() if "refused" in line]
    assert shown == [CLIENTS[each] for each in found]


def test_no_entry_of_a_time_is_said(log: Path) -> None:
    done = CliRunner().invoke(app, ["audit", "show", "--log", str(log), "--until", "2023-01-01"])
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "no entry of that time\n")


def test_who_sees_only_the_last_entries_is_told_so(log: Path) -> None:
    more = "shown: --limit shows more\n"
    for limit, said in (
        (1, f"fleet-broker: only the last is {more}"),
        (3, f"fleet-broker: only the last 3 are {more}"),
        (4, ""),
        (5, ""),
    ):
        done = CliRunner().invoke(app, ["audit", "show", "refused", "--log", str(log), "--limit", str(limit)])
        assert (done.exit_code, done.stderr) == (0, said)
        assert len(done.stdout.splitlines()) == min(limit, 4)
        assert done.stdout.endswith("client=plain\n")


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(b'{"number":6,"at":"2023\xff","mac":"00"}\n', id="no text"),
        pytest.param(b'{"number":6,"at":[1],"event":[2],"code":{},"mac":"00"}\n', id="other types"),
        pytest.param(b'{"number":6,"a":' + b"[" * 100_000 + b',"mac":"00"}\n', id="nested without an end"),
    ],
)
@pytest.mark.parametrize("given", [[], ["--since", "2023-01-01"], ["--json"]])
def test_a_line_that_was_changed_into_anything_hides_no_other(log: Path, changed: bytes, given: list[str]) -> None:
    """It was a traceback, after the entries before it."""
    log.write_bytes(log.read_bytes().replace(b"\n", b"\n" + changed, 2))
    done = CliRunner().invoke(app, ["audit", "show", "--log", str(log), *given])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1].count("plain") == 1
