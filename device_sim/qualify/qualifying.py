"""What `fleet-sim qualify` does: judge a device or firmware by how it reacts when broker and enrolment misbehave."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import typer
from rich.console import Console

from device_sim.attack import report
from device_sim.attack.run import worst
from device_sim.attack.verdict import Outcome, Verdict
from device_sim.destination import clear, expect_reports, write_each
from device_sim.explanation import explained
from device_sim.interruption import Interruption
from device_sim.interruption import run as run_story
from device_sim.qualify.device import BadCommand, Device, Hardware, Program
from device_sim.qualify.judging import SENDS_NOTHING
from device_sim.qualify.papers import Papers
from device_sim.qualify.run import Bench, qualify
from device_sim.qualify.stages import NoSuchStage, Stage, pick
from device_sim.qualify.stand import CannotListen
from device_sim.report import ExitCode
from device_sim.stage.workplace import workplace
from device_sim.view import View
from provisioning.pki.identity import InvalidIdentity
from provisioning.program.host_and_port import with_port
from provisioning.program.hung_line import print_hung
from provisioning.program.loopback import own_loopback

_KIND = "qualify"


def judge_device(
    command: str | None,
    only: list[str] | None,
    show_list: bool,
    client_id: str,
    host: str | None,
    port: int,
    server_name: list[str] | None,
    directory: Path | None,
    window: float,
    parallel: int,
    ignores_staples: bool,
    json: Path | None,
    junit: Path | None,
) -> None:
    """Judge what *command* starts, or whatever connects; *show_list*: only list the stages. Raises `typer.Exit`."""
    host = host or own_loopback()
    try:
        stages = pick(only or ())
        device: Device = Program(command) if command is not None else Hardware()
        papers = Papers(client_id, [host, "localhost", *(server_name or ())])
    except (NoSuchStage, BadCommand, InvalidIdentity) as error:
        raise typer.BadParameter(str(error)) from None
    if directory is not None and directory.exists():
        raise typer.BadParameter(f"--dir {directory} exists: give a new directory")
    out, err = report.console(sys.stdout), report.console(sys.stderr)
    if show_list:
        width = max(len(stage.name) for stage in stages) + 2
        for stage in stages:
            print_hung(f"{stage.name:{width}}{stage.description}", width)
        return
    expect_reports(json, junit)
    view = View()

    async def story(_interruption: Interruption) -> list[Outcome]:
        with ExitStack() as stack:
            if directory is None:
                place = stack.enter_context(workplace(_KIND, view.said))
            else:
                place = directory
                place.mkdir(mode=0o700, parents=True)
            bench = Bench(papers, device, place, host, port, window, ignores_staples=ignores_staples)
            if isinstance(device, Hardware):
                papers.write(place)
                _instruct(err, bench)
            return await _judged(out, _Live(err, len(stages), (json, junit)), bench, stages, parallel)

    with explained(view, also=(BadCommand, CannotListen)):
        started = time.monotonic()
        outcomes = run_story(story)
        seconds = time.monotonic() - started
        contents = {}
        if json is not None:
            contents[json] = report.json_of(report.as_dict(_KIND, client_id, outcomes, report.environment()))
        if junit is not None:
            contents[junit] = report.junit_of(_KIND, client_id, outcomes, seconds)
        errors = write_each(contents)
    code = exit_code(outcomes)
    with view.telling(code):  # After the files: they are there if the reader of our output has left.
        report.show(out, f"{_KIND} {client_id}", outcomes, headings=("a device should …", "it did"))
    raise typer.Exit(view.not_written(errors, code))


async def _judged(out: Console, live: _Live, bench: Bench, stages: Sequence[Stage], parallel: int) -> list[Outcome]:
    try:
        return await qualify(bench, stages, parallel, live.begins, live.told)
    except asyncio.CancelledError:
        live.begun()
        how_far = f"in stage {live.number} of {len(stages)}"
        report.show_stopped(out, f"{_KIND} {bench.papers.identity.name}", live.outcomes, how_far)
        raise


class _Live:
    """A line for each stage as it begins, and on a terminal one for each verdict."""

    def __init__(self, err: Console, count: int, older: Sequence[Path | None]) -> None:
        self._err = err
        self._count = count
        self._older = older
        """Where reports of an earlier run may be."""
        self.number = 0
        """How many stages have begun."""
        self.outcomes: list[Outcome] = []
        """The lines judged so far."""

    def begun(self) -> None:
        """Remove older reports: not sooner, so a program that cannot be started, or a port in use, costs nobody one."""
        for path in self._older:
            clear(path)

    def begins(self, stage: Stage) -> None:
        """Report that *stage* begins."""
        self.number += 1
        text = f"[{self.number}/{self._count}] {stage.name}: {stage.description}"
        self._err.print(text, soft_wrap=True, markup=False, highlight=False)

    def told(self, outcome: Outcome) -> None:
        """Report one line of the verdict; outside a terminal all come at the end."""
        if not self.outcomes:
            self.begun()
        self.outcomes.append(outcome)
        if self._err.is_terminal:
            self._err.print(f"  {report.line(outcome)}", soft_wrap=True, markup=False, highlight=False)


def _instruct(err: Console, bench: Bench) -> None:
    where = with_port(bench.host, bench.port)
    err.print(
        f"Let the device connect to {where} as {bench.papers.identity.name}, and leave it so; with\n"
        f"  trust anchor  {bench.directory / 'ca.crt'}\n"
        f"  certificate   {bench.directory / 'device.crt'}\n"
        f"  key           {bench.directory / 'device.key'}",
        soft_wrap=True, markup=False, highlight=False,
    )  # fmt: skip


def exit_code(outcomes: Sequence[Outcome]) -> ExitCode:
    """Return the worst: data sent to impostors, any other failure, nothing judged, no verdict on this machine."""
    failed = [outcome.name for outcome in outcomes if outcome.verdict is Verdict.FAIL]
    if any(name.endswith(SENDS_NOTHING) for name in failed):
        return ExitCode.SECURITY
    return {Verdict.FAIL: ExitCode.ERROR, Verdict.INVALID: ExitCode.INVALID}.get(worst(outcomes), ExitCode.OK)
