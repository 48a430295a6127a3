"""Runs everything for long, with lives of minutes and faults in between, and judges what grows and what goes wrong.

    make soak SOAK_SECONDS=1500                          half an hour on SQLite
    make soak SOAK_SECONDS=1500 SOAK_ARGS=--postgresql   the same on PostgreSQL

A real service and broker; devices whose certificates live for two and a half minutes, which renew, are revoked,
suspended, resumed, decommissioned; issuing CAs that are replaced every few minutes and retired; lists, bundles, tokens,
claims, sessions, wills and retained messages that expire (`soak_rounds`); and every other round a fault
(`soak_faults`): our own processes are killed in the first and the last part only, because what grows is seen in a
process that lives long. Exit code 1: something grew, a rightful device was refused, a revoked one admitted, an
acknowledged message lost, a program says that it is not well, or something of all this was never done.

What needs root (a disk to fill) or Debian's `faketime` (clocks that are set) is left out without it, and said.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import command
from processes import ChildFailed, ended_by_signals
from rich.console import Console
from rich.table import Table
from soak_faults import KILLING, Fault, faults, lasting, ready_again
from soak_figures import Figures
from soak_fleet import Surroundings, Weather
from soak_judge import Check, Growth, checks, growths, in_one_life, never_done, rounds_of_longest_lives
from soak_record import written_at_the_end
from soak_rounds import PROMISED, Work
from soak_stand import CommandFailed, Stand, standing
from soak_stand import command as run_command

from device_sim.link.keep_alive import KeepAlive

_KILLING_SHARE = 0.15
"""Of the time, at either end: at the start there is little to find again, at the end all that has gathered."""
_OBJECTS_EVERY = 4
_FAULT_AFTER = 3.0


async def soak(options: Namespace, folder: Path, console: Console) -> tuple[list[Growth], list[Check]]:
    """Run for as long as the command line says; return what the figures did, and the verdicts."""
    async with (
        standing(folder, on_postgresql=options.postgresql, life=options.life) as stand,
        AsyncExitStack() as stack,
    ):
        keep_alive = await stack.enter_async_context(KeepAlive())
        weather = Weather()
        if options.keep:
            stack.callback(_keep, stand, options.keep)  # Whatever happens: if a program ends by itself, they say why.
        here = Surroundings.of(stand, weather, keep_alive)
        work = Work(here, options.devices)
        await work.prepare_plant()
        await stand.broker.start()
        await work.begin()
        stack.push_async_callback(work.end)
        _say_what_is_missing(stand, console)
        figures = Figures(stand)
        if options.json:
            stack.enter_context(written_at_the_end(figures.rounds, options.json))
        began = time.monotonic()
        killing, others = itertools.cycle(KILLING), itertools.cycle(faults(stand, hours=options.hours))
        for number in itertools.count(1):
            elapsed = time.monotonic() - began
            if elapsed > options.seconds:
                break
            fault = None
            if number % 2 == 0:
                share = elapsed / options.seconds
                fault = next(others if _KILLING_SHARE < share < 1 - _KILLING_SHARE else killing)
            await _round(stand, work, weather, number, fault, options.round)
            if here.ledger.failed:
                break
            operations = sum(here.ledger.operations.values()) - figures.counted
            row = await figures.take(operations, objects=number % _OBJECTS_EVERY == 0, calm=fault is None)
            _tell(console, number, elapsed, fault, row, here)
        await work.end()
        failed = await _final(stand, figures)
        programs = (stand.service.name, stand.broker.name)
        grown = growths(in_one_life(figures.rounds, programs))
        wrong = {
            "no rightful device is refused": here.ledger.refused_wrongly,
            "no revoked one is admitted": here.ledger.admitted_wrongly,
            "nothing acknowledged is lost": here.ledger.lost,
            "no exception in a log": [each for log in figures.logs.values() for each in log.tracebacks],
            "no error in a log without a fault": figures.errors,
            "neither is unwell at the end": [*here.ledger.failed, *failed],
            "nothing was left undone": never_done(here.ledger.operations, PROMISED),
        }
        console.print(f"excused, for a fault: {dict(here.ledger.excused.most_common(12))}", markup=False)
        console.print(f"done: {dict(here.ledger.operations.most_common())}", markup=False)
        for program in (stand.service, stand.broker):
            console.print(f"{program.name}: more objects than at first: {figures.grown_types(program)}", markup=False)
        return grown, checks(grown, rounds_of_longest_lives(figures.rounds, programs), wrong)


async def _round(stand: Stand, work: Work, weather: Weather, number: int, fault: Fault | None, seconds: float) -> None:
    """Do one round, with a *fault* in its middle."""
    began = time.monotonic()
    doing = asyncio.create_task(work.round(number))
    try:
        if fault is not None:
            await asyncio.sleep(_FAULT_AFTER)
            with weather.bad(fault.__name__.replace("_", " "), lasting(fault)):
                await fault(stand)
                await ready_again(stand)
        await doing
        await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
        await work.verify()
    except (TimeoutError, ValueError, LookupError) as error:
        work.here.ledger.failed.append(f"round {number}: {error!r}")
    finally:
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)


async def _final(stand: Stand, figures: Figures) -> list[str]:
    """Return what audit logs and doctor have to say at the end."""
    failed = []
    audit = ["-m", "broker", "audit", "verify", "--log", str(stand.folder / "broker-audit" / "log")]
    audit += ["--key", str(stand.folder / "broker" / "audit.key")]
    asked: dict[str, Callable[[], Awaitable[str]]] = {
        "audit verify": lambda: stand.command("audit", "verify"),
        "doctor": lambda: stand.command("doctor"),
        "the broker's audit verify": lambda: run_command(audit, {}),
    }
    for name, asking in asked.items():
        try:
            await asking()
        except CommandFailed as error:
            failed.append(f"{name}: {error}")
    for program in (stand.broker, stand.service):
        child = program.running
        await asyncio.to_thread(child.stop)
        code = child.wait(1)
        if code != 0:
            failed.append(f"{program.name}: exit code {code} after SIGTERM")
        figures.logs[program.name].take()
    return failed


def _say_what_is_missing(stand: Stand, console: Console) -> None:
    if stand.volume is None:
        console.print("no full disk: a file system can only be mounted by root", style="yellow")
    if stand.service.clock.library is None:
        console.print("no clock is set: Debian's package faketime is not installed", style="yellow")


def _tell(
    console: Console, number: int, elapsed: float, fault: Fault | None, row: dict[str, float], here: Surroundings
) -> None:
    ledger = here.ledger
    wrong = [*ledger.refused_wrongly, *ledger.admitted_wrongly, *ledger.lost]
    console.print(
        f"{datetime.now(UTC):%H:%M:%S} round {number:3} at {elapsed:5.0f} s, {fault.__name__ if fault else '-':22} "
        f"service {row['fleet-provisioning RSS MiB']:4.0f} MiB {row['fleet-provisioning descriptors']:3.0f} fds, "
        f"broker {row['fleet-broker RSS MiB']:4.0f} MiB {row['fleet-broker descriptors']:3.0f} fds, "
        f"{row['operations']:4.0f} operations, {len(wrong)} wrong" + (f", last: {wrong[-1]}" if wrong else ""),
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip


def _keep(stand: Stand, place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    for program in (stand.service, stand.broker):
        (place / program.log.name).write_bytes(program.log.read_bytes())


def show(console: Console, grown: list[Growth], verdicts: list[Check], *, everything: bool) -> None:
    """Print the figures that grew or say something, or *everything*, and the verdicts."""
    table = Table(title="medians of the first and the last third of the rounds")
    for heading in ("figure", "first", "last", "verdict"):
        table.add_column(heading, justify="left" if heading in ("figure", "verdict") else "right")
    for each in grown:
        if each.failed or everything or (each.shown and each.last):
            table.add_row(each.name, f"{each.first:,.1f}", f"{each.last:,.1f}", each.verdict)
    console.print(table)
    for verdict in verdicts:
        console.print(
            f"  {'✓' if verdict.holds else '✗'}    {verdict.what:34} {verdict.seen}", markup=False, highlight=False
        )
    console.print("PASS" if all(each.holds for each in verdicts) else "FAIL")


def main() -> int:
    """Soak as the command line says; return the exit code."""
    options = _options()
    console = Console(stderr=True, width=220)
    code, done = 1, None
    try:
        with ended_by_signals(), tempfile.TemporaryDirectory(prefix="fleetgate-soak-") as folder:
            done = asyncio.run(soak(options, Path(folder), console))
    except* KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        code = 130
    except* (ChildFailed, CommandFailed) as group:
        console.print(f"soak: {next(command.errors_in(group))}", style="red", markup=False)
    if done is None:
        return code
    grown, verdicts = done
    show(Console(width=None if sys.stdout.isatty() else 130), grown, verdicts, everything=options.all)
    return 0 if all(each.holds for each in verdicts) else 1


def _options() -> Namespace:
    parser = ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=command.count, default=1500, help="how long (1500)")
    parser.add_argument("--postgresql", action="store_true", help="provisioning's store is PostgreSQL, not SQLite")
    parser.add_argument("--devices", type=command.count, default=12, help="devices that are connected (12)")
    parser.add_argument("--round", type=command.count, default=12, metavar="SECONDS", help="of a round, at least (12)")
    parser.add_argument("--life", type=command.count, default=150, metavar="SECONDS", help="of certificates (150)")
    parser.add_argument("--no-hours", dest="hours", action="store_false", help="set clocks by seconds only")
    parser.add_argument("--all", action="store_true", help="show every figure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's figures there, on Ctrl-C too")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="copy the logs there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
