"""Where a report is to go is looked at before the run, which is not begun where it could not be told."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import cast

import pytest
from typer.testing import CliRunner

from device_sim.attack import attacking
from device_sim.attack.verdict import Judgement, Outcome, Verdict
from device_sim.cli import app
from device_sim.credentials.fleet_directory import FleetDirectory, Origin
from device_sim.destination import clear, expect_directory, expect_file, write
from device_sim.qualify import qualifying
from provisioning.pki.keys import key_to_pem
from provisioning.pki.role import Role
from tests.support.authority import Authority
from tests.support.somebody_else import as_somebody_else, place_for_all


@pytest.mark.parametrize("command", ["run smoke --self-hosted --output {file}/report", "attack --json {file}/report",
                                     "revocation --junit {away}/report", "qualify --exec true --json {directory}",
                                     "attack --junit {directory}"])  # fmt: skip
def test_a_report_that_could_not_be_written_begins_no_run(command: str, tmp_path: Path) -> None:
    (file := tmp_path / "file").touch()
    words = command.format(file=file, away=tmp_path / "away", directory=tmp_path).split()
    done = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert (done.exit_code, f"{words[-2]} {words[-1]}" in done.output) == (2, True), done.output


@pytest.mark.parametrize("command", ["attack", "qualify --exec true", "delivery"])
def test_two_reports_are_not_written_to_one_file(command: str, tmp_path: Path) -> None:
    """The second one had replaced the first at the end."""
    words = [*command.split(), "--json", str(tmp_path / "a" / ".." / "of"), "--junit", str(tmp_path / "of")]
    (tmp_path / "a").mkdir()
    done = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert (done.exit_code, "is the file of --json: name another" in done.output) == (2, True), done.output


@pytest.mark.parametrize(
    "command",
    ["demo --dir {closed}", "demo --dir {closed}/new", "demo --dir {readable}", "demo --dir {writable}",
     "demo --dir {long}", "attack --json {closed}/report", "attack --json {long}", "attack --junit {long}/report"],
)  # fmt: skip
def test_where_a_user_may_not_write_is_wrong_usage_and_told_before_anything_begins(command: str) -> None:
    """Some ended with a traceback, some as a failure of the demo."""
    modes = {"closed": 0o000, "readable": 0o555, "writable": 0o333}
    with place_for_all() as place:
        for name, mode in modes.items():
            (place / name).mkdir()
            (place / name).chmod(mode)
        words = command.format(**{name: place / name for name in modes}, long=place / ("a" * 300)).split()
        with as_somebody_else():
            done = CliRunner().invoke(app, words, env={"COLUMNS": "1000"})
    assert (done.exit_code, f"{words[-2]} {words[-1]}" in done.output) == (2, True), done.output
    assert re.search(r"; name (another|a shorter one)|or name another", done.output), done.output


def test_what_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (kept := tmp_path / "kept").write_text("of yesterday")
    for path in (None, kept, tmp_path / "new"):
        expect_file("--json", path)
    expect_directory("--output", None)
    expect_directory("--output", tmp_path / "runs" / "monday")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["kept", "runs"]
    assert kept.read_text() == "of yesterday"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("attack --broker 127.0.0.1:1 --cafile no --ca-cert no --ca-key no", 1),
        ("attack --broker 127.0.0.1:1 --cafile {ca} --ca-cert {ca} --ca-key {key}", 1),
        ("attack --broker 127.0.0.1:1 --cafile {ca} --ca-cert {ca} --ca-key {key} --capabilities no", 1),
        ("delivery --broker 127.0.0.1:1 --cafile {ca} --provisioning https://127.0.0.1:1 --cert {ca} --key no", 1),
        ("qualify --exec /no/such/program", 1),
        ("qualify --exec /no/such/program --only drop-tcp", 1),
        ("qualify --host 192.0.2.1 --exec true", 1),
    ],
)
def test_an_argument_that_is_wrong_costs_nobody_the_report_of_yesterday(
    command: str, code: int, tmp_path: Path
) -> None:
    authority = Authority()
    (ca := tmp_path / "ca.pem").write_text(authority.pem)
    (key := tmp_path / "ca.key").write_bytes(key_to_pem(authority._key))
    reports = [tmp_path / "of.json", tmp_path / "of.xml"]
    for each in reports:
        each.write_text("PASS")
    words = [*command.format(ca=ca, key=key).split(), "--json", str(reports[0]), "--junit", str(reports[1])]
    done = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert done.exit_code == code, done.output
    assert [each.read_text() for each in reports] == ["PASS", "PASS"]


class _Ended(Exception):
    """What ends a run that has begun."""


@pytest.mark.parametrize(
    ("module", "name", "command"),
    [
        (attacking, "run", "attack --broker 127.0.0.1:1 --cafile {ca} --ca-cert {ca} --ca-key {key}"),
        (qualifying, "qualify", "qualify --only good --exec true"),
    ],
)
@pytest.mark.parametrize("stopped", [True, False])
def test_what_has_begun_and_comes_to_no_end_leaves_nothing_of_yesterday(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str, command: str, stopped: bool
) -> None:
    authority, reports = Authority(), [tmp_path / "of.json", tmp_path / "of.xml"]
    (ca := tmp_path / "ca.pem").write_text(authority.pem)
    (key := tmp_path / "ca.key").write_bytes(key_to_pem(authority._key))
    for each in reports:
        each.write_text("PASS")

    async def begun(*given: object) -> None:
        if module is attacking:
            cast("Callable[[], None]", given[-1])()
        elif not stopped:  # Who is stopped before anything is judged has begun as well.
            cast("Callable[[Outcome], None]", given[-1])(Outcome("good.connects", "", (), 1.0, Judgement(Verdict.PASS)))
        if not stopped:
            raise _Ended
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    monkeypatch.setattr(module, name, begun)
    words = [*command.format(ca=ca, key=key).split(), "--json", str(reports[0]), "--junit", str(reports[1])]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, SystemExit if stopped else _Ended)
    assert done.exit_code == (130 if stopped else 1)
    assert [each.exists() for each in reports] == [False, False]


OF_A_RUN = ("report.json", "report.html", "timeline.csv", "junit.xml", "progress.jsonl", "notes.txt")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ("--fleet {no}", 1, "nothing"),
        ("--fleet {fleet} --broker no.such.host.invalid", 1, "is not found"),
        ("{quiet} --fleet {fleet} --broker 127.0.0.1:1 --devices 3", 2, "has 2 usable devices"),
        ("--fleet {fleet} --broker 127.0.0.1:1 --devices 2", 2, "needs our provisioning service"),
        ("--fleet {fleet} --broker [::1]:1 --devices 2 --sources 2", 2, "--sources"),
        ("{quiet} --fleet {fleet} --broker 127.0.0.1:1 --devices 2", 1, "is not let in at 127.0.0.1:1"),
    ],
)
def test_a_run_that_could_not_begin_leaves_the_reports_of_yesterday(
    options: str, code: int, words: str, tmp_path: Path
) -> None:
    authority, out = Authority(), tmp_path / "out"
    fleet = FleetDirectory.create(tmp_path / "fleet", Origin(), authority.pem, "backend")
    with fleet.changing():
        for name, role in (("meter-0", Role.DEVICE), ("meter-1", Role.DEVICE), ("backend", Role.SERVICE)):
            fleet.keep(authority.issue(name, role=role, group="meters" if role is Role.DEVICE else None))
    (quiet := tmp_path / "quiet.toml").write_text('name = "quiet"\ndevices = 2\n[[stages]]\nramp = { rate = 1 }\n')
    out.mkdir()
    for name in OF_A_RUN:
        (out / name).write_text("PASS")
    chosen = options.format(no=tmp_path / "nothing", fleet=fleet.path, quiet=quiet)
    scenario = [] if chosen.startswith(str(quiet)) else ["smoke"]
    done = CliRunner().invoke(app, ["run", *scenario, *chosen.split(), "--output", str(out)], env={"COLUMNS": "400"})
    assert (done.exit_code, words in done.output) == (code, True), done.output
    assert {each.name: each.read_text() for each in out.iterdir()} == dict.fromkeys(OF_A_RUN, "PASS")


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


def test_what_could_not_be_written_whole_is_not_left_behind(tmp_path: Path) -> None:
    """Half a report is none, and would be taken for the report in the place of what was written while it ran."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2, hard))
    try:
        with pytest.raises(OSError, match="File too large") as told:
            write(tmp_path / "report.json", '{"a": 1}')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert told.value.filename == str(tmp_path / "report.json")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_opened_for_writing_stays(tmp_path: Path) -> None:
    """`report --html` at a page that may only be read removed it, where the directory may be written."""
    shutil.copy("/bin/sleep", program := tmp_path / "report.html")
    program.chmod(0o700)
    with subprocess.Popen([program, "60"]) as running:  # Nobody may write what runs: not even root.
        try:
            with pytest.raises(OSError, match="Text file busy"):
                write(program, "<!doctype html>")
        finally:
            running.kill()
    assert program.stat().st_size > 10_000
