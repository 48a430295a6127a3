"""What `fleet-sim attack` does: which cases are tried, what is written where, and the exit code."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import typer
from rich.console import RenderableType
from rich.text import Text

from device_sim.attack import capabilities as claims
from device_sim.attack import report, revocation_list
from device_sim.attack.capabilities import CapabilityError, Feature
from device_sim.attack.case import Case
from device_sim.attack.catalogue import CATALOGUE, WEBSOCKET, NoSuchCase, pick
from device_sim.attack.choosing import chosen
from device_sim.attack.delivery_list import OWED
from device_sim.attack.given import Given
from device_sim.attack.list_reading import what_was_waited_for
from device_sim.attack.run import CONTROLS, judged, run, worst
from device_sim.attack.target import Impossible, Target
from device_sim.attack.verdict import OPEN, Outcome, Verdict
from device_sim.destination import clear, expect_reports, write_each
from device_sim.explanation import explained
from device_sim.interruption import Interruption
from device_sim.interruption import run as run_story
from device_sim.report import ExitCode
from device_sim.stage.workplace import workplace
from device_sim.view import View
from provisioning.program.hung_line import print_hung


@dataclass(slots=True)
class _Tried:
    """The progress, for a log: on a terminal each case has a line of its own."""

    cases: int
    outcomes: list[Outcome] = field(default_factory=list)

    def line(self) -> str:
        """Return the state in one line."""
        if not self.outcomes:
            return f"0 of {self.cases} cases tried"
        return f"{len(self.outcomes)} of {self.cases} cases tried: {report.totals(self.outcomes)}"

    def picture(self) -> RenderableType:
        """Return the same."""
        return Text(self.line())


_NO_CERTIFICATE = "2-no-certificate"


def _say_what_is_assumed(view: View, target: Target, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> None:
    """Name the features that failed cases need, where it was not stated whether this broker has them."""
    if target.capabilities is not claims.EVERYTHING:
        return
    failed = {outcome.name for outcome in outcomes if outcome.verdict is Verdict.FAIL}
    needing = {need: [case.name for case in cases if need in case.needs and case.name in failed] for need in Feature}
    needed = ", ".join(f"{need} ({', '.join(names)})" for need, names in needing.items() if names)
    if needed:
        view.said(
            f"without --capabilities a broker is held to all that one can do; failed for want of: {needed}. What it "
            "does not claim is skipped: name in a file what it does"
        )


def _say_where_to_begin(view: View, outcomes: Sequence[Outcome]) -> None:
    """Name the one cause behind most failures where no certificate is required."""
    for outcome in outcomes:
        seen = outcome.seen
        if outcome.name == _NO_CERTIFICATE and seen is not None and seen.got_in and seen.code != OPEN:
            view.said(
                f"whoever shows no certificate gets in ({_NO_CERTIFICATE}), so what is wrong with one matters little: "
                "let the broker require client certificates, and try again"
            )


def _say_more(view: View, target: Target, cases: Sequence[Case], outcomes: Sequence[Outcome]) -> None:
    _say_where_to_begin(view, outcomes)
    _say_what_is_assumed(view, target, cases, outcomes)
    if waited := what_was_waited_for(target):
        view.said(waited)
    if not judged(outcomes):
        view.said("nothing was judged: every case was skipped, for the reason it says")


def _write(kind: str, target: Target, outcomes: Sequence[Outcome], given: Given, seconds: float = 0.0) -> list[OSError]:
    """Write the reports of a run that took *seconds*; return why some are not there."""
    name = target.capabilities.name
    contents = {}
    if given.json is not None:
        document = report.as_dict(kind, name, outcomes, report.environment())
        if target.version:
            document["target_version"] = target.version
        if target.build:
            document["target_build"] = target.build
        if target.ended is not None:
            document["cleared_away"] = target.ended.as_dict()
        contents[given.json] = report.json_of(document)
    if given.junit is not None:
        contents[given.junit] = report.junit_of(kind, name, outcomes, seconds)
    return write_each(contents)


def _exit_code(target: Target, outcomes: Sequence[Outcome], failed: ExitCode) -> ExitCode:
    """Return the exit code for *outcomes*; *failed* if a case has."""
    if not judged(outcomes):
        return ExitCode.ERROR
    # A device left behind is our own error, not a finding, and so is a file.
    left = target.not_put_back or (target.ended is not None and target.ended.left)
    well = ExitCode.ERROR if left else ExitCode.OK
    return {Verdict.FAIL: failed, Verdict.INVALID: ExitCode.INVALID}.get(worst(outcomes), well)


def judge(
    kind: str, catalogue: Sequence[Case], given: Given, *, tls12: bool = False, failed: ExitCode = ExitCode.SECURITY
) -> None:
    """Try those of *catalogue* that are *given*, or list them; report and write the outcomes; raise `typer.Exit`.

    *tls12* makes a broker that is started speak TLS 1.2 too. *failed* is the exit code if a case failed.
    """
    opened = chosen(given, tls12=tls12)
    out = report.console(sys.stdout)
    err = report.console(sys.stderr)
    try:
        cases = pick(catalogue, given.only or ())
    except NoSuchCase as error:
        raise typer.BadParameter(str(error)) from None
    if given.show_list:
        for case in cases:
            right = case.clause or " or ".join(case.expected)
            print_hung(f"{case.name:32}{case.description}  [{right}]", 32)
        return
    expect_reports(given.json, given.junit)

    view, tried = View(), _Tried(len(cases) + len(CONTROLS))

    def told(outcome: Outcome) -> None:
        tried.outcomes.append(outcome)
        if err.is_terminal:
            err.print(report.line(outcome), soft_wrap=True, markup=False, highlight=False)

    def begun() -> None:  # Not sooner: an argument that is wrong costs nobody a report.
        clear(given.json)
        clear(given.junit)

    async def story(_interruption: Interruption) -> tuple[Target, list[Outcome], list[OSError]]:
        started = time.monotonic()
        with workplace(kind, view.said) as directory:
            async with AsyncExitStack() as stack:
                if not err.is_terminal:
                    await stack.enter_async_context(view.watching(lambda: tried))
                target = await stack.enter_async_context(opened(directory))
                known = (*CATALOGUE, *WEBSOCKET, *revocation_list.chapter.cases, *OWED)
                target.capabilities.check_cases(case.name for case in known)
                try:
                    outcomes = await run(target, cases, told, begun)
                except asyncio.CancelledError:
                    how_far = f"after {len(tried.outcomes)} of {tried.cases} cases"
                    report.show_stopped(out, f"{kind} {target.capabilities.name}", tried.outcomes, how_far)
                    raise
        # Before they are shown: the files are there if the reader of our output has left.
        return (
            target,
            outcomes,
            await asyncio.to_thread(_write, kind, target, outcomes, given, time.monotonic() - started),
        )

    with explained(view, also=(CapabilityError, Impossible)):
        target, outcomes, errors = run_story(story)
    code = _exit_code(target, outcomes, failed)
    with view.telling(code):
        report.show(out, f"{kind} {target.capabilities.name}", outcomes)
    _say_more(view, target, cases, outcomes)
    raise typer.Exit(view.not_written(errors, code))
