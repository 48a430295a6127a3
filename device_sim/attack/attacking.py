"""What `fleet-sim attack` does: which target, which cases, what is written where; and the exit code."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import typer
from rich.console import RenderableType
from rich.text import Text

from device_sim.attack import capabilities as claims
from device_sim.attack import report, revocation_list
from device_sim.attack.against import Opened
from device_sim.attack.capabilities import CapabilityError
from device_sim.attack.case import Case
from device_sim.attack.catalogue import CATALOGUE, NoSuchCase, pick
from device_sim.attack.issuer import Issuer
from device_sim.attack.run import run, worst
from device_sim.attack.target import Impossible, SigningRegistrar, Target
from device_sim.attack.verdict import Outcome, Verdict
from device_sim.explanation import explained
from device_sim.interruption import Interruption
from device_sim.interruption import run as run_story
from device_sim.report import ExitCode
from device_sim.tls_dial import Endpoint
from device_sim.view import View


@dataclass(slots=True)
class _Tried:
    """How far it is, for a log: on a terminal each case has a line of its own."""

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


_EXIT_CODES = {Verdict.FAIL: ExitCode.SECURITY, Verdict.INVALID: ExitCode.INVALID}


def foreign_target(
    host: str | None,
    port: int,
    server_name: str,
    cafile: Path | None,
    ca_cert: Path | None,
    ca_key: Path | None,
    file: Path | None,
) -> Opened | None:
    """Return the target that the options name, or None if they name none. Raises `typer.BadParameter`."""
    if host is None:
        if cafile or ca_cert or ca_key or file:
            raise typer.BadParameter("--cafile, --ca-cert, --ca-key, --capabilities: for a broker given by --host")
        return None
    if cafile is None or ca_cert is None or ca_key is None:
        raise typer.BadParameter("--host: give --cafile, --ca-cert and --ca-key too")
    anchors, certificate, key = cafile, ca_cert, ca_key

    @asynccontextmanager
    async def opened(_directory: Path) -> AsyncIterator[Target]:
        claimed = claims.load(file) if file is not None else claims.EVERYTHING
        issuer = Issuer.load(certificate, key)
        registrar = SigningRegistrar(issuer, claimed.revocation)
        yield Target(claimed, Endpoint(host, port, server_name), anchors, issuer, registrar)

    return opened


def judge(
    kind: str,
    catalogue: Sequence[Case],
    opened: Opened,
    only: list[str] | None,
    show_list: bool,
    json: Path | None,
    junit: Path | None,
) -> None:
    """Try those of *catalogue* that *only* picks, or *show_list* them; tell and write the outcomes; `typer.Exit`."""
    out = report.console(sys.stdout)
    err = report.console(sys.stderr)
    try:
        cases = pick(catalogue, only or ())
    except NoSuchCase as error:
        raise typer.BadParameter(str(error)) from None
    if show_list:
        for case in cases:
            out.print(f"{case.name:32}{case.description}  [{' or '.join(case.expected)}]", soft_wrap=True, markup=False)
        return

    view, tried = View(), _Tried(len(cases) + 1)

    def told(outcome: Outcome) -> None:
        tried.outcomes.append(outcome)
        if err.is_terminal:
            err.print(report.line(outcome), soft_wrap=True, markup=False, highlight=False)

    async def story(_interruption: Interruption) -> Verdict:
        with tempfile.TemporaryDirectory(prefix=f"fleet-sim-{kind}-") as directory:
            async with AsyncExitStack() as stack:
                if not err.is_terminal:
                    await stack.enter_async_context(view.watching(lambda: tried))
                target = await stack.enter_async_context(opened(Path(directory)))
                target.capabilities.check_cases(case.name for case in (*CATALOGUE, *revocation_list.chapter.cases))
                name = target.capabilities.name
                outcomes = await run(target, cases, told)
        report.show(out, f"{kind} {name}", outcomes)
        if json is not None:
            await asyncio.to_thread(report.write_json, json, report.as_dict(kind, name, outcomes, report.environment()))
        if junit is not None:
            await asyncio.to_thread(report.write_junit, junit, kind, name, outcomes)
        return worst(outcomes)

    with explained(view, also=(CapabilityError, Impossible)):
        verdict = run_story(story)
    raise typer.Exit(_EXIT_CODES.get(verdict, ExitCode.OK))
