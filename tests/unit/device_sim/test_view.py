from __future__ import annotations

import asyncio
import errno
import io
import os
import ssl
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from device_sim.cli import main
from device_sim.fleet.intruders import CASES, Finding
from device_sim.fleet.revocation_trial import Cut
from device_sim.latency import LatencySummary
from device_sim.link.closure import Closure, Layer
from device_sim.report import Report
from device_sim.terminal import ReaderLeft
from device_sim.unread import Unread
from device_sim.view import Progress, Traffic, View

LATENCY = LatencySummary(1000, 0.5, 1.2, 3.4, 9.0)
TRAFFIC = Traffic(3.0, 15.0, 199, 200, 998.4, 3000, 2, LATENCY, LATENCY)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(renderable: object, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def test_progress_says_how_many_and_how_fast() -> None:
    progress = Progress("enrolled", 50, 200, 0.5)
    assert progress.line() == "enrolled: 50/200 (100/s)"
    assert "50/200" in drawn(progress.picture())
    assert Progress("enrolled", 0, 0, 0.0).rate == 0.0


@pytest.mark.parametrize(("width", "bar"), [(140, 80), (80, 40), (60, 24), (40, 10), (26, 0)])
def test_the_bar_of_progress_is_as_long_as_fits_and_its_figures_are_whole(width: int, bar: int) -> None:
    for done in (0, 100, 200):
        (line,) = drawn(Progress("connected", done, 200, 0.3).picture(), width).splitlines()
        begin, figures = len("  connected "), f"{done}/200"
        assert line.startswith("  connected ")
        assert line.index(figures) - begin == (bar + 1 if bar else 0)
        assert line.split()[-2:] == [figures, f"{done / 0.3:.0f}/s"]


def test_traffic_shows_the_same_figures_live_and_in_a_line() -> None:
    assert "connected 199/200  998 msg/s  received 3000  latency ms p50 0.50 p95 1.20 p99 3.40" in TRAFFIC.line()
    picture = drawn(TRAFFIC.picture())
    for figure in ("199/200", "998", "3000", "0.50", "1.20", "3.40"):
        assert figure in picture


@pytest.mark.parametrize(
    ("width", "figures"),
    [
        (80, "connected messages/s received in flight p50 ms p95 ms p99 ms max ms"),
        (60, "connected messages/s received p50 ms p99 ms"),
        (40, "connected messages/s p99 ms"),
    ],
)
def test_a_narrow_terminal_gets_fewer_figures_and_none_that_is_cut_off(width: int, figures: str) -> None:
    bar, headings, _ = drawn(TRAFFIC.picture(), width).splitlines()
    assert " ".join(headings.split()) == figures
    assert "3/15 s" in bar
    assert ("generator late" in bar) is (width > 40)


def test_what_is_said_stays_indented_on_a_terminal_and_whole_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "every word of it " * 20
    View().said(words)
    assert capsys.readouterr().err == f"  {words.rstrip()}\n"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    View().said(words)
    lines = terminal.getvalue().splitlines()
    assert len(lines) > 1
    assert all(line.startswith("  ") for line in lines)


def test_an_error_of_the_system_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    View().failed(FileNotFoundError(2, "No such file or directory", "ca.crt"))
    assert capsys.readouterr().err == "fleet-sim: ca.crt: No such file or directory\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (PermissionError(errno.EACCES, "Denied", "out"), "out: Denied; let this user do it, or name another"),
        (OSError(errno.EMFILE, "Too many"), "Too many; raise the limit for open files (ulimit -n)"),
        (OSError(errno.EADDRINUSE, "address already in use"), "address already in use"),
        (OSError("in its own words"), "in its own words"),
        (ssl.SSLError(errno.EPERM, "unknown error"), "unknown error"),
    ],
)  # fmt: skip
def test_no_number_of_the_system_s_is_shown_and_what_can_be_done_is(
    capsys: pytest.CaptureFixture[str], error: OSError, said: str
) -> None:
    View().failed(error)
    assert capsys.readouterr().err == f"fleet-sim: {said}\n"


@pytest.mark.parametrize("name", [None, "out/progress.jsonl"])
def test_a_full_disk_is_told_with_a_remedy(capsys: pytest.CaptureFixture[str], name: str | None) -> None:
    View().failed(OSError(errno.ENOSPC, "No space left on device", name))
    where = f"{name}: " if name else ""
    said = f"fleet-sim: {where}No space left on device; free some, or name a place on another disk\n"
    assert capsys.readouterr().err == said


def test_results_go_to_standard_output_and_progress_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    view = View()
    view.chapter("A chapter")
    view.said("[not markup]")
    report = Report(42, 200)
    report.check("fine", True, "[all of it]")
    view.summary(report)
    out, err = capsys.readouterr()
    assert "A chapter" in err
    assert "[not markup]" in err
    assert "PASS: 1 of 1 checks" in out
    assert "[all of it]" in out
    assert [line for line in out.splitlines() if line.endswith(" ")] == [], "a table fills its last column with blanks"
    assert "\x1b" not in out + err


def test_a_failure_names_the_checks_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(42, 200)
    report.check("fine", True, "")
    report.check("open door", False, "", security=True)
    View().summary(report)
    assert "FAIL: open door" in capsys.readouterr().out


def test_what_did_not_happen_is_shown_too(capsys: pytest.CaptureFixture[str]) -> None:
    view = View()
    view.revocations([
        Cut("meter-1", 0.012, -0.001, Closure(Layer.MQTT, "0x98", "REVOKED: …", 0, 0x98)),
        Cut("meter-2", 5.0, 5.0, None),
    ])  # fmt: skip
    view.findings([Finding(CASES[0], None, 0.01), Finding(CASES[1], Closure(Layer.TLS, "unknown_ca", "", 0), 0.01)])
    err = capsys.readouterr().err
    assert "12.0 ms" in err
    assert "-1.0 ms" in err
    assert "not in 5 s" in err
    assert "nobody: the attack succeeded" in err
    assert "tls unknown_ca" in err


def test_a_narrow_terminal_breaks_a_long_reason_and_cuts_nothing_off(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    topic = "fleet/meters/meter-0001/telemetry/of/the/second/floor"
    View().findings([Finding(CASES[0], Closure(Layer.MQTT, "0x87", f"may not publish to '{topic}'", 0), 0.01)])
    shown = screen.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert topic in "".join(shown.split()), "in pieces, and whole"


async def test_without_a_terminal_the_last_state_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    async with View().watching(lambda: TRAFFIC):
        pass
    assert capsys.readouterr().err.count("998 msg/s") == 1


async def test_without_a_terminal_a_line_is_told_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_sim.view._LINE_SECONDS", 0)
    looks = asyncio.Semaphore(0)

    def seen() -> Traffic:
        looks.release()
        return TRAFFIC

    async with View().watching(seen):
        for _ in range(3):
            await looks.acquire()
    assert capsys.readouterr().err.count("998 msg/s") == 1


@pytest.mark.parametrize("terminal", [False, True], ids=["a file", "a terminal"])
def test_whatever_is_shown_holds_no_control_sequence_of_somebody_else(
    monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    out, err = (Terminal() if terminal else io.StringIO() for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    hostile = "\x1b]52;c;Y3VybA==\x07\x9b2J\r"
    view = View()
    view.chapter(hostile)
    view.said(hostile)
    view.directions(hostile)
    view.failed(ValueError(hostile))
    view.result(f"two\nlines {hostile}")
    table = Table("", "")
    table.add_row("name", Text(hostile))
    view.show(Group(table, Text(hostile, "red")))
    for told in (out.getvalue(), err.getvalue()):
        assert "]52;c;Y3VybA==" in told
        assert [each for each in ("\x1b]", "\x07", "\x9b", "\r") if each in told] == []
    assert "two\nlines" in out.getvalue()


def test_a_terminal_that_has_no_tick_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", out := io.TextIOWrapper(raw := io.BytesIO(), encoding="latin-1"))
    monkeypatch.setattr(sys, "argv", ["fleet-sim", "--version"])
    with pytest.raises(SystemExit):
        main()
    out.write("\u2713")
    out.flush()
    assert raw.getvalue().endswith(rb"\u2713")


@pytest.mark.parametrize(
    ("code", "given", "words"),
    [(0, 1, "passed, but exit code 1"), (4, 4, "exit code 4 is the verdict's"), (3, 3, "exit code 3 is the verdict's")],
)
def test_a_report_that_is_not_there_hides_no_finding_and_is_no_success(
    capsys: pytest.CaptureFixture[str], code: int, given: int, words: str
) -> None:
    """A broker that let a revoked device in had exit code 1, an error's, on a full disk."""
    full = OSError(errno.ENOSPC, "No space left on device", "out/junit.xml")
    assert View().not_written([], code) == code
    assert View().not_written([full], code) == given
    assert capsys.readouterr().err.splitlines() == [
        "fleet-sim: out/junit.xml: No space left on device; free some, or name a place on another disk",
        f"  not written: out/junit.xml; {words}",
    ]


def _without_a_reader() -> io.BufferedWriter:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "wb")


def _on_a_full_disk() -> io.BufferedWriter:
    return Path("/dev/full").open("wb")


@pytest.mark.parametrize("opened", [_without_a_reader, _on_a_full_disk])
async def test_nobody_has_to_read_of_the_progress(monkeypatch: pytest.MonkeyPatch, opened: Callable[[], Any]) -> None:
    """A run whose terminal was closed ended without its report, and so did one behind ``2>&1 | head``."""
    unread = Unread(plain := io.TextIOWrapper(opened()))
    monkeypatch.setattr(sys, "stderr", unread)
    view = View()
    async with view.watching(lambda: TRAFFIC):
        view.said("on we go" * 10_000)
    view.failed(OSError("this too"))
    unread.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), plain.fileno())
    plain.close()


@pytest.mark.parametrize("code", [0, 4])
def test_a_finding_keeps_its_exit_code_though_nobody_reads_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    for opened, error in ((_without_a_reader, ReaderLeft), (_on_a_full_disk, OSError)):
        with monkeypatch.context() as patch, io.TextIOWrapper(opened()) as out:
            patch.setattr(sys, "stdout", out)
            view = View()
            with pytest.raises(error) if not code else nullcontext(), view.telling(code):
                view.result("FAIL")
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
    told = "  the output cannot be written: No space left on device; exit code 4 is the verdict's\n"
    assert capsys.readouterr().err == (told if code else "")
