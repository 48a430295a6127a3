"""What a person sees while a command runs: a live display on a terminal, a line every few seconds elsewhere.

Rules
-----
1. Progress goes to standard error, results to standard output: ``--json`` can be piped.
2. At most four updates a second, drawn by the loop's own thread.
3. The story decides what is shown; this module only decides how.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from device_sim.fitting import Fitting, row
from device_sim.repeating import repeating
from device_sim.report import Check, ExitCode, Report
from device_sim.terminal import ReaderLeft, WordsOnly
from provisioning.program.given_up_output import give_up_output
from provisioning.program.unwritten import remedy_of

if TYPE_CHECKING:
    from device_sim.fleet.intruders import Finding
    from device_sim.fleet.revocation_trial import Cut
    from device_sim.latency import LatencySummary

_PICTURE_SECONDS = 0.25
_LINE_SECONDS = 3.0
_LOG_WIDTH = 1000
_BARS = (80, 40, 24, 10)
"""How long a bar of progress may be, in columns."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of some work."""

    what: str
    done: int
    total: int
    seconds: float
    counted_from: int = 0

    @property
    def rate(self) -> float:
        """How many per second, on average, since it began."""
        return (self.done - self.counted_from) / self.seconds if self.seconds else 0.0

    def line(self) -> str:
        """Return the state in one line."""
        return f"{self.what}: {self.done}/{self.total} ({self.rate:.0f}/s)"

    def picture(self) -> RenderableType:
        """Return the state as a bar."""
        figures = (f"{self.done}/{self.total}", f"{self.rate:.0f}/s")
        bars = [ProgressBar(total=max(self.total, 1), completed=self.done, width=width) for width in _BARS]
        return Fitting(*(_beside(self.what, bar, *figures) for bar in bars), _beside(self.what, *figures))


@dataclass(frozen=True, slots=True)
class Traffic:
    """The state of the fleet while it publishes."""

    elapsed: float
    total: float
    connected: int
    devices: int
    rate: float
    received: int
    unacknowledged: int
    latency: LatencySummary
    lateness: LatencySummary

    def line(self) -> str:
        """Return the state in one line."""
        return (
            f"{self.elapsed:4.1f}/{self.total:.0f} s  connected {self.connected}/{self.devices}  "
            f"{self.rate:.0f} msg/s  received {self.received}  latency ms p50 {self.latency.p50:.2f} "
            f"p95 {self.latency.p95:.2f} p99 {self.latency.p99:.2f}  generator late p99 {self.lateness.p99:.1f} ms"
        )

    def picture(self) -> RenderableType:
        """Return the state as a table."""
        figures = {
            "connected": f"{self.connected}/{self.devices}",
            "messages/s": f"{self.rate:.0f}",
            "received": str(self.received),
            "in flight": str(self.unacknowledged),
            "p50 ms": f"{self.latency.p50:.2f}",
            "p95 ms": f"{self.latency.p95:.2f}",
            "p99 ms": f"{self.latency.p99:.2f}",
            "max ms": f"{self.latency.highest:.1f}",
        }
        some = {name: figures[name] for name in ("connected", "messages/s", "received", "p50 ms", "p99 ms")}
        few = {name: figures[name] for name in ("connected", "messages/s", "p99 ms")}
        late = Text(f"generator late p99 {self.lateness.p99:.1f} ms", style="dim")
        return Group(
            Fitting(*(self._bar(width, late) for width in _BARS), self._bar(_BARS[-1])),
            Fitting(row(figures), row(some), row(few)),
        )

    def _bar(self, width: int, *beside: Text) -> Table:
        elapsed = min(self.elapsed, self.total)
        bar = ProgressBar(total=self.total, completed=elapsed, width=width)
        return _beside("streaming", bar, f"{elapsed:.0f}/{self.total:.0f} s", *beside)


def _beside(what: str, *parts: RenderableType) -> Table:
    """Return *what* is under way, and *parts* of its picture beside it."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(f"  {what}", *parts)
    return grid


class Shown(Protocol):
    """A state that can be displayed."""

    def line(self) -> str:
        """Return the state in one line."""

    def picture(self) -> RenderableType:
        """Return the state as a picture."""


class View:
    """The output of a command: the result on standard output, progress and errors on standard error."""

    def __init__(self) -> None:
        self._out = _console(sys.stdout)
        self._err = _console(sys.stderr)
        self._started = time.monotonic()

    def chapter(self, title: str) -> None:
        """Begin a section of the output."""
        self._err.print(
            f"\n[bold]{escape(title)}[/bold]  [dim]{time.monotonic() - self._started:.1f} s[/dim]", highlight=False
        )

    def said(self, text: str) -> None:
        """Report one completed step."""
        if self._err.is_terminal:
            self._err.print(Padding(Text(text), (0, 0, 0, 2), expand=False), highlight=False)
        else:
            self._err.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)

    @asynccontextmanager
    async def watching(self, state: Callable[[], Shown]) -> AsyncIterator[None]:
        """Show *state* repeatedly while the context is open, and at its end; without a terminal only changes."""
        if not self._err.is_terminal:
            told = ""

            def tell() -> None:
                nonlocal told
                line = state().line()
                if line != told:
                    told = line
                    self.said(line)

            async with repeating(_LINE_SECONDS, tell):
                yield
            tell()
            return
        with Live(state().picture(), console=self._err, auto_refresh=False) as live:
            async with repeating(_PICTURE_SECONDS, lambda: live.update(state().picture(), refresh=True)):
                yield
            live.update(state().picture(), refresh=True)

    def revocations(self, cuts: Sequence[Cut]) -> None:
        """Show, for each revoked device, how soon it was disconnected, and the reason that was given."""
        table = Table(box=None, padding=(0, 2))
        table.add_column("device")
        table.add_column("call sent to closed", justify="right")
        table.add_column("call answered to closed", justify="right")
        for cut in cuts:
            if cut.closure is None:
                table.add_row(cut.device, f"not in {cut.since_sent:g} s", "")
            else:
                table.add_row(cut.device, f"{cut.since_sent * 1000:.1f} ms", f"{cut.since_answer * 1000:+.1f} ms")
        self._err.print(table, highlight=False)
        for told in sorted({str(cut.closure) for cut in cuts if cut.closure is not None}):
            self.said(f"told: {told}")

    def findings(self, findings: Sequence[Finding]) -> None:
        """Show how each intruder was treated."""
        from device_sim.fleet.intruders import (
            Outcome,  # Late: every command has a view, but only the demo has intruders.
        )

        table = Table(box=None, padding=(0, 2))
        for heading in ("", "a device that", "was refused by", "ms"):
            # A topic is one long word: if cut off, it would be ambiguous.
            table.add_column(heading, justify="right" if heading == "ms" else "left", overflow="fold")
        for finding in findings:
            mark = {Outcome.REFUSED: "[green]✓[/]", Outcome.REFUSED_OTHERWISE: "[yellow]![/]"}.get(
                finding.outcome, "[red]✗[/]"
            )
            told = Text("nobody: the attack succeeded")
            if finding.closure is not None:
                told = Text(f"{finding.closure.layer} {finding.closure.code}")
                told.append(f"\n{finding.closure.reason}" if finding.closure.reason else "", style="dim")
            table.add_row(mark, finding.case.description, told, f"{finding.seconds * 1000:.0f}")
        self._err.print(table, highlight=False)

    def document(self, report: Report) -> None:
        """Print the report as one JSON document."""
        self._out.print_json(data=report.as_dict())

    def directions(self, text: str) -> None:
        """Show what the user can do next."""
        self._err.print(text, highlight=False, markup=False, soft_wrap=True)

    def result(self, text: str) -> None:
        """Show the outcome, on standard output."""
        self._out.print(text, highlight=False, markup=False, soft_wrap=True)

    def show(self, picture: RenderableType) -> None:
        """Show the outcome, on standard output."""
        self._out.print(picture, highlight=False)

    def failed(self, error: BaseException) -> None:
        """Show why there is no result."""
        text = str(error)
        if isinstance(error, OSError):
            if error.strerror:  # Not "[Errno 2]": the reader is a person.
                # Whoever writes to an open file is not told its name.
                text = error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
            if remedy := remedy_of(error):
                text += f"; {remedy}"
        text = "\n  ".join((text, *getattr(error, "__notes__", ())))
        # A terminal would break at its edge, in the middle of a word.
        whole = not self._err.is_terminal
        self._err.print(f"fleet-sim: {text}", style="red", highlight=False, markup=False, soft_wrap=whole)

    def not_written(self, errors: Sequence[OSError], code: int) -> int:
        """Show which reports are not there, and why; return the exit code, which was *code* for the verdict.

        A finding has its own exit code, whatever becomes of the report; what has passed and cannot be shown has not
        succeeded.
        """
        for error in errors:
            self.failed(error)
        if not errors:
            return code
        missing = ", ".join(str(error.filename) for error in errors)
        given = code or ExitCode.ERROR
        why = f"exit code {given} is the verdict's" if code else f"passed, but exit code {given}"
        self.said(f"not written: {missing}; {why}")
        return given

    @contextmanager
    def telling(self, code: int) -> Iterator[None]:
        """Let a verdict be printed whose exit code is *code*: a finding keeps its own, though nobody can read it."""
        try:
            yield
        except ReaderLeft:
            if not code:
                raise
        except OSError as error:
            if not code:
                raise
            give_up_output()
            self.said(f"the output cannot be written: {error.strerror}; exit code {code} is the verdict's")

    def summary(self, report: Report) -> None:
        """Show the verdict."""
        table = Table(title="Summary", title_justify="left", box=None, padding=(0, 2))
        table.add_column("")
        table.add_column("check")
        table.add_column("figures")
        for check in report.checks:
            table.add_row(_mark(check), check.name, Text(check.detail))
        self._out.print()
        self._out.print(table, highlight=False)
        failed = [check.name for check in report.checks if not check.passed]
        if report.exit_code is ExitCode.INVALID:
            told = f"\n[bold yellow]INVALID[/]: {escape('; '.join(report.invalid))} (late: {', '.join(failed)})"
            self._out.print(told, highlight=False)
        elif failed:
            self._out.print(f"\n[bold red]FAIL[/]: {', '.join(failed)}", highlight=False)
        else:
            seconds = time.monotonic() - self._started
            self._out.print(
                f"\n[bold green]PASS[/]: {len(report.checks)} of {len(report.checks)} checks in {seconds:.0f} s "
                f"(seed {report.seed})",
                highlight=False,
            )


def _console(file: TextIO) -> Console:
    # Without a terminal rich assumes 80 columns and breaks lines that a log should keep whole.
    return WordsOnly(file=file, width=None if file.isatty() else _LOG_WIDTH)


def _mark(check: Check) -> str:
    return "[green]✓[/]" if check.passed else "[red]✗[/]"
