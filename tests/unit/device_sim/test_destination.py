"""Where a report is to go is looked at before the run, which is not begun where it could not be told."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from device_sim.cli import app
from device_sim.destination import clear, expect_directory, expect_file, write


@pytest.mark.parametrize("command", ["run smoke --self-hosted --output {file}/report", "attack --json {file}/report",
                                     "revocation --junit {away}/report", "qualify --exec true --json {directory}",
                                     "attack --junit {directory}"])  # fmt: skip
def test_a_report_that_could_not_be_written_begins_no_run(command: str, tmp_path: Path) -> None:
    (file := tmp_path / "file").touch()
    words = command.format(file=file, away=tmp_path / "away", directory=tmp_path).split()
    done = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert (done.exit_code, f"{words[-2]} {words[-1]}" in done.output) == (2, True), done.output


def test_what_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (kept := tmp_path / "kept").write_text("of yesterday")
    for path in (None, kept, tmp_path / "new"):
        expect_file("--json", path)
    expect_directory("--output", None)
    expect_directory("--output", tmp_path / "runs" / "monday")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept", "runs"]
    assert kept.read_text() == "of yesterday"


@pytest.mark.parametrize("command", ["attack --broker 127.0.0.1:1 --cafile no --ca-cert no --ca-key no",
                                     "qualify --exec /no/such/program"])  # fmt: skip
def test_where_nothing_could_be_tried_no_report_of_yesterday_is_left(command: str, tmp_path: Path) -> None:
    reports = [tmp_path / "of.json", tmp_path / "of.xml"]
    for each in reports:
        each.write_text("PASS")
    words = [*command.split(), "--json", str(reports[0]), "--junit", str(reports[1])]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert done.exit_code == 1, done.output
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_comes_to_no_end_leaves_no_reports_of_yesterday(tmp_path: Path) -> None:
    for name in ("report.json", "report.html", "timeline.csv", "junit.xml", "progress.jsonl", "notes.txt"):
        (tmp_path / name).write_text("PASS")
    words = ["run", "smoke", "--fleet", str(tmp_path / "no fleet"), "--output", str(tmp_path)]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert done.exit_code == 1, done.output
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


def test_what_is_no_file_of_its_own_is_not_cleared(tmp_path: Path) -> None:
    (target := tmp_path / "output").write_text("what was printed before")
    (link := tmp_path / "stdout").symlink_to(target)
    for path in (None, link, tmp_path / "new", Path("/dev/null")):
        clear(path)
    assert target.read_text() == "what was printed before"
    assert link.is_symlink()


def test_a_disk_that_is_full_is_told_with_the_file(tmp_path: Path) -> None:
    (full := tmp_path / "report.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as told:
        write(full, "{}")
    assert told.value.filename == str(full)


def test_what_could_not_be_written_whole_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a report is none, and would be taken for the report in the place of what was written while it ran."""

    def full(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(text.encode(encoding)[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "report.json", '{"a": 1}')
    assert list(tmp_path.iterdir()) == []
