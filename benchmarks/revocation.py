"""Measure how long a revoked device stays connected: from the operator's call to the closed connection.

    .venv/bin/python benchmarks/revocation.py                     2,000 devices: 200 one by one, 500 at once, 500 in one
    … --devices 10000 --in-one-call 1000                          a large fleet, a thousand of it in one call
    … --already-revoked 1000000                                   a million entries in the broker's index before

The provisioning service and the broker are the real ones; the devices are enrolled by EST and held by the load
generator, which records when the broker closes each connection. A call is timed from just before it is made, so the
time includes everything: the operator's HTTPS request, the commit, the feed, the broker, the closing of the connection.
The operator's connections cost little themselves (`kept_connections`). Three ways: one by one, the next call once the
previous device is out; at once, with many calls in flight; in one call, the way an operator revokes many.

Rules
-----
1. A device that is disconnected without having been revoked, or stays connected after it was, fails the run.
2. Each closed connection has the time at which the load generator's read met the end of the stream. The reports of many
   are read in few pieces: this process shares the machine with what it measures.
3. The operator's connections are opened beforehand, and the first revocation is not counted.
4. Previously revoked certificates are put into the store while it is closed; the broker reads them from the feed.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import command
import mqload
from fleet import running
from kept_connections import KeptConnection, WronglyAnswered, request
from peers import PeerMissing
from processes import ChildFailed, ended_by_signals
from rich.console import Console
from rich.table import Table

from provisioning.client.est import EnrolmentRefused, EnrolmentUnavailable
from provisioning.client.operator import RequestRefused, ServiceUnavailable
from provisioning.pki.revocation_reason import RevocationReason

GOAL_P99_SECONDS = 0.1
_NOT_AUTHORISED_ANY_MORE = 0x98  # MQTT 5: DISCONNECT, administrative action.
_CLOSED_WITHIN_SECONDS = 30
_CREATED = 201
_MANY = 64
_MOMENT_SECONDS = 0.05
_PIPE_BYTES = 1 << 20
_SMOKE = ["--devices", "30", "--one-by-one", "5", "--at-once", "10", "--in-one-call", "10", "--already-revoked", "500"]


class WronglyClosed(RuntimeError):
    """A connection was wrongly closed or kept, or closed without the reason."""


_FAILURES = (
    WronglyClosed,
    WronglyAnswered,
    ChildFailed,
    PeerMissing,
    mqload.LoadFailed,
    mqload.NotBuilt,
    EnrolmentRefused,
    EnrolmentUnavailable,
    RequestRefused,
    ServiceUnavailable,
)


@dataclass(frozen=True, slots=True)
class Revoked:
    """One revocation: when it was requested, answered, and the device's connection closed (monotonic seconds)."""

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
    """When the broker closed which connection, as reported by the load generator."""

    def __init__(self, load: mqload.Load, reason: int) -> None:
        self._load = load
        self._reason = reason
        self._expected: dict[str, asyncio.Future[float]] = {}
        self._failure: Exception | None = None
        self._watched = True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Read the load generator's reports during the block."""
        loop = asyncio.get_running_loop()
        fcntl.fcntl(self._load.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        loop.add_reader(self._load.fileno(), self._arrived)
        try:
            yield
        finally:
            self._watched = False
            loop.remove_reader(self._load.fileno())

    def expect(self, device: str) -> asyncio.Future[float]:
        """Announce the revocation of *device*; the future gives the time when its connection was closed."""
        self.check()
        closing = self._expected[device] = asyncio.get_running_loop().create_future()
        return closing

    def check(self) -> None:
        """Raise what went wrong, if anything."""
        if self._failure is not None:
            raise self._failure

    def _arrived(self) -> None:
        """Read reports; where many are to come, all of the next moments at once."""
        self._read()
        loop = asyncio.get_running_loop()
        if len(self._expected) > _MANY and self._failure is None:
            loop.remove_reader(self._load.fileno())
            loop.call_later(_MOMENT_SECONDS, self._watch_again)

    def _watch_again(self) -> None:
        if self._watched:
            asyncio.get_running_loop().add_reader(self._load.fileno(), self._arrived)

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


async def revoke(operator: KeptConnection, closings: Closings, devices: Sequence[str]) -> list[Revoked]:
    """Revoke *devices* in one call and wait until their connections are closed."""
    expected = [closings.expect(device) for device in devices]
    whom = {"device": devices[0]} if len(devices) == 1 else {"devices": list(devices)}
    body = json.dumps({**whom, "reason": RevocationReason.KEY_COMPROMISE}).encode()
    called = time.monotonic()
    await operator.send(request("POST", "/v1/revocations", body, "application/json"), _CREATED)
    answered = time.monotonic()
    try:
        async with asyncio.timeout(_CLOSED_WITHIN_SECONDS):
            return [
                Revoked(device, called, answered, await closing)
                for device, closing in zip(devices, expected, strict=True)
            ]
    except TimeoutError:
        raise WronglyClosed(f"{devices[0]} is revoked and still connected after {_CLOSED_WITHIN_SECONDS} s") from None


async def measure(options: argparse.Namespace, folder: Path, console: Console) -> list[Result]:
    """Run the fleet and revoke as the command line says."""
    connected = [f"d{number:05}" for number in range(1, options.devices + 1)]
    first, *rest = connected
    one_by_one, rest = rest[: options.one_by_one], rest[options.one_by_one :]
    at_once, rest = rest[: options.at_once], rest[options.at_once :]
    in_one_call = rest[: options.in_one_call]
    async with running(folder, already_revoked=options.already_revoked, compiled=options.compiled) as fleet:
        await fleet.enrol(connected, lambda done: _tell(console, done, len(connected)))
        version = ["-5"] if options.mqtt == "5" else []
        arguments: list[str | Path] = ["-p", str(fleet.broker_port), "-a", fleet.trust_anchors, "-D", fleet.devices]
        with mqload.Load([*arguments, "-n", str(len(connected)), "-L", *version], folder / "load.log") as load:
            up = (await asyncio.to_thread(load.phase, "connect"))["up"]
            console.print(f"{up} devices connected")
            closings = Closings(load, _NOT_AUTHORISED_ANY_MORE if version else -1)
            async with fleet.operator_connections(options.calls_at_once) as operators:
                with closings.watched():
                    await revoke(operators[0], closings, [first])
                    results = [
                        Result(
                            "one by one", [(await revoke(operators[0], closings, [device]))[0] for device in one_by_one]
                        ),
                        Result(
                            f"at once, {options.calls_at_once} calls in flight",
                            await _in_parallel(operators, closings, at_once),
                        ),
                        Result("in one call", await revoke(operators[0], closings, in_one_call) if in_one_call else []),
                    ]
                    closings.check()
    return [result for result in results if result.revoked]


async def _in_parallel(
    operators: Sequence[KeptConnection], closings: Closings, devices: Sequence[str]
) -> list[Revoked]:
    """Revoke *devices*, with one call in flight on each of the connections at any time."""
    waiting, revoked = list(reversed(devices)), []

    async def work(operator: KeptConnection) -> None:
        while waiting:
            revoked.extend(await revoke(operator, closings, [waiting.pop()]))

    async with asyncio.TaskGroup() as tasks:
        for operator in operators:
            tasks.create_task(work(operator))
    return revoked


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
        "compiled": options.compiled,
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
        failures = [str(error) for error in command.errors_in(group)]
        console.print(f"revocation: {failures[0]}", style="red", markup=False)
    if failures:
        return 1 if failures[0] else 130
    show(Console(width=None if sys.stdout.isatty() else 130), results)
    if options.json:
        write(options.json, options, results)
    return 0


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
    parser.add_argument("--in-one-call", type=_count, default=500, help="then revoked by one call, 1000 at most (500)")
    parser.add_argument("--already-revoked", type=_count, default=0, help="certificates revoked before (0)")
    parser.add_argument("--mqtt", choices=("5", "3.1.1"), default="5", help="what the devices speak (5)")
    parser.add_argument("--compiled", action="store_true", help="the broker that `make compiled` has built")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every revocation's times there")
    parser.add_argument("--smoke", action="store_true", help="the smallest run; its figures mean nothing")
    given = sys.argv[1:]
    options = parser.parse_args([*_SMOKE, *given] if "--smoke" in given else given)
    needed = 1 + options.one_by_one + options.at_once + options.in_one_call
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
