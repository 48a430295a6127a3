"""Measure how long a revoked device stays connected: from the operator's call to the closed connection.

    .venv/bin/python benchmarks/revocation.py                     2,000 devices, 200 revoked one by one, 500 at once
    … --devices 10000 --already-revoked 5000                      a large fleet with a history

The provisioning service and the broker are the real ones; the devices are enrolled by EST and held by the load
generator, which notes when the broker closes each connection. A call is timed from just before it is made, so the time
has everything in it: the operator's HTTPS request, the commit, the feed, the broker, the closing of the connection.

Rules
-----
1. A device that is closed without having been revoked, or stays after it was, fails the run.
2. The operator's connections are open before, and the first revocation is not counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import mqload
from fleet import Fleet, running
from processes import ChildFailed, ended_by_signals
from rich.console import Console
from rich.table import Table

from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable
from provisioning.client.operator import RequestRefused, ServiceUnavailable
from provisioning.pki.revocation import RevocationReason

GOAL_P99_SECONDS = 0.1
_NOT_AUTHORISED_ANY_MORE = 0x98  # MQTT 5: DISCONNECT, administrative action.
_CLOSED_WITHIN_SECONDS = 30

ResultT = TypeVar("ResultT")


class WronglyClosed(RuntimeError):
    """A connection was closed or kept that should not have been, or without the reason."""


_FAILURES = (
    WronglyClosed,
    ChildFailed,
    mqload.LoadFailed,
    mqload.NotBuilt,
    EnrolmentRefused,
    EnrolmentUnavailable,
    RequestRefused,
    ServiceUnavailable,
)


@dataclass(frozen=True, slots=True)
class Revoked:
    """One revocation: when it was asked for, answered, and the device's connection closed (monotonic seconds)."""

    device: str
    called: float
    answered: float
    closed: float


@dataclass(frozen=True, slots=True)
class Result:
    """All revocations of one kind."""

    title: str
    revoked: Sequence[Revoked]

    @property
    def until_closed(self) -> list[float]:
        """Seconds from call to closed connection, ascending."""
        return sorted(one.closed - one.called for one in self.revoked)

    @property
    def whole(self) -> float:
        """Seconds from the first call to the last closed connection."""
        return max(one.closed for one in self.revoked) - min(one.called for one in self.revoked)


class Closings:
    """When the broker closed which connection, as the load generator reports it."""

    def __init__(self, load: mqload.Load, reason: int) -> None:
        self._load = load
        self._reason = reason
        self._expected: dict[str, asyncio.Future[float]] = {}
        self._failure: Exception | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Read the load generator's reports in the block."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._load.fileno(), self._read)
        try:
            yield
        finally:
            loop.remove_reader(self._load.fileno())

    def expect(self, device: str) -> asyncio.Future[float]:
        """Say that *device* is about to be revoked; the future is when its connection was closed."""
        self.check()
        closing = self._expected[device] = asyncio.get_running_loop().create_future()
        return closing

    def check(self) -> None:
        """Raise what went wrong, if anything did."""
        if self._failure is not None:
            raise self._failure

    def _read(self) -> None:
        try:
            for line in self._load.lines_arrived():
                self._note(**json.loads(line))
        except (WronglyClosed, ChildFailed) as error:
            asyncio.get_running_loop().remove_reader(self._load.fileno())
            self._failure = error
            for closing in self._expected.values():
                if not closing.done():
                    closing.set_exception(error)

    def _note(self, phase: str, id: str, at: float, reason: int) -> None:  # noqa: A002 - The report's own word.
        closing = self._expected.pop(id, None)
        if phase != "lost" or closing is None:
            raise WronglyClosed(f"{id} was closed and is not revoked")
        if reason != self._reason:
            raise WronglyClosed(f"{id} was closed with reason {reason} where {self._reason} is due")
        if not closing.done():
            closing.set_result(at)


async def revoke(fleet: Fleet, closings: Closings, device: str) -> Revoked:
    """Revoke *device* and wait until its connection is closed."""
    closing = closings.expect(device)
    called = time.monotonic()
    await fleet.operator.revoke(device=device, reason=RevocationReason.KEY_COMPROMISE)
    answered = time.monotonic()
    try:
        closed = await asyncio.wait_for(closing, _CLOSED_WITHIN_SECONDS)
    except TimeoutError:
        raise WronglyClosed(f"{device} is revoked and still connected after {_CLOSED_WITHIN_SECONDS} s") from None
    return Revoked(device, called, answered, closed)


async def measure(options: argparse.Namespace, folder: Path, console: Console) -> list[Result]:
    """Run the fleet and revoke as the command line says."""
    connected = [f"d{number:05}" for number in range(1, options.devices + 1)]
    history = [f"old{number:05}" for number in range(1, options.already_revoked + 1)]
    one_by_one = connected[1 : 1 + options.one_by_one]
    at_once = connected[1 + options.one_by_one : 1 + options.one_by_one + options.at_once]
    async with running(folder) as fleet:
        await fleet.enrol(connected + history, lambda done: _tell(console, done, len(connected) + len(history)))
        await _in_parallel(
            options.calls_at_once,
            history,
            lambda device: fleet.operator.revoke(device=device, reason=RevocationReason.SUPERSEDED),
        )
        version = ["-5"] if options.mqtt == "5" else []
        arguments: list[str | Path] = ["-p", str(fleet.broker_port), "-a", fleet.trust_anchors, "-D", fleet.devices]
        with mqload.Load([*arguments, "-n", str(len(connected)), "-L", *version], folder / "load.log") as load:
            up = (await asyncio.to_thread(load.phase, "connect"))["up"]
            console.print(f"{up} devices connected")
            closings = Closings(load, _NOT_AUTHORISED_ANY_MORE if version else -1)
            with closings.watched():
                await asyncio.gather(*(fleet.operator.status() for _ in range(options.calls_at_once)))
                await revoke(fleet, closings, connected[0])
                results = [
                    Result("one by one", [await revoke(fleet, closings, device) for device in one_by_one]),
                    Result(
                        f"at once, {options.calls_at_once} calls in flight",
                        await _in_parallel(
                            options.calls_at_once, at_once, lambda device: revoke(fleet, closings, device)
                        ),
                    ),
                ]
                closings.check()
    return [result for result in results if result.revoked]


async def _in_parallel(limit: int, items: Sequence[str], action: Callable[[str], Awaitable[ResultT]]) -> list[ResultT]:
    """Return what *action* returns for each of *items*, *limit* of them under way at any time."""
    waiting, results = list(reversed(items)), []

    async def work() -> None:
        while waiting:
            results.append(await action(waiting.pop()))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(min(limit, len(waiting))):
            tasks.create_task(work())
    return results


def show(console: Console, results: Sequence[Result]) -> None:
    """Print the table and whether the goal is met."""
    table = Table(title="revoked → connection closed, from the operator's call, milliseconds")
    for heading in ("devices revoked", "p50", "p99", "largest", "of it until the call is answered, p50", "all of them"):
        table.add_column(heading, justify="left" if heading == "devices revoked" else "right")
    for result in results:
        closed = result.until_closed
        answered = sorted(one.answered - one.called for one in result.revoked)
        table.add_row(
            f"{len(closed)} {result.title}",
            *(f"{seconds * 1e3:,.1f}" for seconds in (_quantile(closed, 0.5), _quantile(closed, 0.99), closed[-1])),
            f"{_quantile(answered, 0.5) * 1e3:,.1f}",
            f"{result.whole * 1e3:,.0f}",
        )
    console.print(table)
    for result in results:
        met = _quantile(result.until_closed, 0.99) <= GOAL_P99_SECONDS
        console.print(f"{result.title}: p99 ≤ {GOAL_P99_SECONDS * 1e3:.0f} ms {'met' if met else 'missed'}")


def write(path: Path, options: argparse.Namespace, results: Sequence[Result]) -> None:
    """Write every revocation's times as JSON."""
    content = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "devices": options.devices,
        "already_revoked": options.already_revoked,
        "mqtt": options.mqtt,
        "results": [
            {
                "title": result.title,
                "closed_ms": [round((one.closed - one.called) * 1e3, 3) for one in result.revoked],
                "answered_ms": [round((one.answered - one.called) * 1e3, 3) for one in result.revoked],
                "whole_ms": round(result.whole * 1e3, 3),
            }
            for result in results
        ],
    }
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def main() -> int:
    """Measure what the command line asks for; return the exit code."""
    options = _options()
    console = Console(stderr=True)
    results: list[Result] = []
    failures: list[str] = []
    try:
        with ended_by_signals(), tempfile.TemporaryDirectory(prefix="fleetgate-bench-") as folder:
            mqload.allow_many_connections(options.devices + 500)
            mqload.build()
            results = asyncio.run(measure(options, Path(folder), console))
    except* KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        failures.append("")
    except* _FAILURES as group:
        failures = [str(error) for error in _each(group)]
        console.print(f"revocation: {failures[0]}", style="red", markup=False)
    if failures:
        return 1 if failures[0] else 130
    show(Console(width=None if sys.stdout.isatty() else 130), results)
    if options.json:
        write(options.json, options, results)
    return 0


def _each(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors in *error*, which may be a group of groups."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _each(inner)
    else:
        yield error


def _quantile(ascending: Sequence[float], share: float) -> float:
    """Return the smallest value that at least *share* of the values do not exceed."""
    return ascending[max(0, math.ceil(len(ascending) * share) - 1)]


def _tell(console: Console, done: int, total: int) -> None:
    if done % 500 == 0 or done == total:
        console.print(f"{done} of {total} devices enrolled")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--devices", type=_count, default=2000, help="connected devices (2000)")
    parser.add_argument("--one-by-one", type=_count, default=200, help="revoked one after the other (200)")
    parser.add_argument("--at-once", type=_count, default=500, help="then revoked all at once (500)")
    parser.add_argument("--calls-at-once", type=_count, default=16, help="calls in flight where it is all at once (16)")
    parser.add_argument("--already-revoked", type=_count, default=0, help="certificates revoked before (0)")
    parser.add_argument("--mqtt", choices=("5", "3.1.1"), default="5", help="what the devices speak (5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every revocation's times there")
    options = parser.parse_args()
    needed = 1 + options.one_by_one + options.at_once
    if options.devices < needed:
        parser.error(f"--devices {options.devices} is too few: revoking that many needs {needed}")
    return options


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError("0 at least")
    return number


if __name__ == "__main__":
    sys.exit(main())
