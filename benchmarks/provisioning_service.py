"""The provisioning service beside cfssl: what certificates, OCSP answers and revocations cost, and how many a second.

    .venv/bin/python benchmarks/provisioning_service.py                       both stores, three rounds, ten minutes
    … --store sqlite --rounds 1 --alone                                       ours on SQLite, two minutes
    … --already-revoked 0                                                     in a store without a history
    … --store postgresql --workers 2                                          ours with two processes

Each round starts both CAs fresh with an empty store and the same history, one after the other, in an order that changes
with each round, and sends both the same requests: certificates over kept TLS connections and over a new one each, OCSP
answers signed on demand and pre-signed, revocations one at a time and many at a time. What counts is the server's CPU
time per request, which hardly depends on the machine's other load: a worker with its own core handles 1 / that. The
rates are those of a server and a load that share the machine. See docs/performance-in-detail.md.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import command
from ca_cfssl import cfssl
from ca_figures import Pair, Report, Run
from ca_fleetgate import fleetgate
from ca_load import LoadMissing, Result, over_kept, over_new, same_again, wrk
from ca_running import Question, RunningCa, check_answer
from disturbance import machine_seconds, notes_of
from foreign_peers import NotInstalled, program
from kept_connections import WronglyAnswered
from postgresql import Postgresql, postgresql
from processes import ChildFailed, ended_by_signals
from rich.console import Console

_PEERS: Mapping[str, Callable[..., AbstractAsyncContextManager[RunningCa]]] = {"fleetgate": fleetgate, "cfssl": cfssl}
_STORES = ("sqlite", "postgresql")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much work a run is."""

    kept: int
    """Certificates over kept connections."""
    new: int
    """Certificates over new connections, with X25519 and again with the key exchange that both ends choose."""
    revocations: int
    ocsp_seconds: float
    connections: int
    already_revoked: int
    ocsp_most: int | None = None
    """OCSP requests of a kind; otherwise as many as are answered in those seconds."""
    workers: int = 1
    """Our number of processes; cfssl has one, whose threads use every core."""


_FULL = Sizes(3000, 800, 800, 4.0, 16, 100_000)
_SMOKE = Sizes(40, 10, 20, 1.0, 4, 100, ocsp_most=100)


def main() -> int:
    """Measure what the command line asks for; return the exit code."""
    parser = _parser()
    options = parser.parse_args()
    if options.workers > 1 and options.store != ["postgresql"]:
        parser.error("several workers need PostgreSQL: add --store postgresql")
    console = Console(stderr=True)
    peers = ["fleetgate"] if options.alone else list(_PEERS)
    report: Report | None = None
    try:
        wrk()
        if not options.alone:
            program("cfssl", "golang-cfssl")
        with ended_by_signals():
            report = _compare(options, peers, _sizes(options), console)
    except KeyboardInterrupt:
        console.print("stopped; nothing is left running")
        return 130
    except (WronglyAnswered, ChildFailed, LoadMissing, NotInstalled) as error:
        console.print(f"provisioning_service: {error}", style="red", markup=False)
        return 2
    report.show(Console(width=None if sys.stdout.isatty() else 150))
    if options.json:
        report.write(options.json)
    return 1 if options.check and report.missed else 0


def _compare(options: argparse.Namespace, peers: list[str], sizes: Sizes, console: Console) -> Report:
    stores: dict[str, list[Pair]] = {store: [] for store in options.store or _STORES}
    with ExitStack() as stack:
        server = stack.enter_context(postgresql()) if "postgresql" in stores else None
        for number in range(1, options.rounds + 1):
            for store, pairs in stores.items():
                order = peers if number % 2 else peers[::-1]
                found: dict[str, Run] = {"cfssl": {}}
                for peer in order:
                    found[peer] = _run(peer, server if store == "postgresql" else None, sizes)
                    console.print(f"round {number}/{options.rounds}, {peer} on {store}: {_brief(found[peer])}",
                                  highlight=False, soft_wrap=True)  # fmt: skip
                pairs.append((found["fleetgate"], found["cfssl"]))
    facts = {"already_revoked": sizes.already_revoked, "connections": sizes.connections, "workers": sizes.workers}
    notes = [
        f"{sizes.already_revoked:,} certificates revoked before, {sizes.connections} connections",
        # A build without profile-guided optimisation costs half as much again.
        f"ours has {sizes.workers} process{'es' * (sizes.workers > 1)}, cfssl one that uses every core",
        f"ours runs on Python {platform.python_version()} of {sys.base_prefix}",
        *notes_of([], [run["stolen"] for pairs in stores.values() for pair in pairs for run in pair if run]),
    ]
    return Report(peers, notes, stores, facts)


def _run(peer: str, server: Postgresql | None, sizes: Sizes) -> Run:
    with tempfile.TemporaryDirectory(prefix="fleetgate-bench-") as folder:
        try:
            return asyncio.run(_measure(peer, Path(folder), server, sizes))
        except* (WronglyAnswered, ChildFailed) as group:
            failure = group.exceptions[0]
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        raise failure


async def _measure(peer: str, folder: Path, server: Postgresql | None, sizes: Sizes) -> Run:
    requests = sizes.kept + 2 * sizes.new + 3  # The first of each kind is not counted.
    async with AsyncExitStack() as stack:
        (_, stolen), begun = machine_seconds(), time.monotonic()
        started = partial(_PEERS[peer], folder, server, requests=requests, already_revoked=sizes.already_revoked)
        ca = await stack.enter_async_context(started(workers=sizes.workers) if peer == "fleetgate" else started())
        found: Run = {"memory_start": ca.memory_kib() / 1024}
        cpu, connections = ca.cpu_seconds, sizes.connections
        database = 0.0 if server is None else server.cpu_seconds()
        kept, new = ca.issue_requests[: sizes.kept + 1], ca.issue_requests[sizes.kept + 1 :]
        result, issued = await over_kept(ca.https, connections, kept, 200, cpu)
        _note(found, "issue_kept", result)
        if server is not None:
            found["issue_kept_database_cpu"] = (server.cpu_seconds() - database) / result.requests * 1e6
        for name, target, part in (
            ("issue_new", ca.https_x25519, new[: sizes.new + 1]),
            ("issue_chosen", ca.https, new[sizes.new + 1 :]),
        ):
            result, _ = await over_new(target, connections, part, 200, cpu)
            _note(found, name, result)
        for name, question in (("ocsp_signed", ca.ocsp_signed), ("ocsp_remembered", ca.ocsp_remembered)):
            _note(found, name, await _asked(question, sizes, folder))
        await _revoke(found, ca, issued, sizes)
        found["memory_end"] = ca.memory_kib() / 1024
        found["stolen"] = (machine_seconds()[1] - stolen) / (time.monotonic() - begun)
        return found


async def _asked(question: Question, sizes: Sizes, folder: Path) -> Result:
    await check_answer(question)
    return await same_again(
        question.url,
        question.body,
        question.media_type,
        connections=sizes.connections,
        seconds=sizes.ocsp_seconds,
        most=sizes.ocsp_most,
        cpu=question.cpu,
        folder=folder,
    )


async def _revoke(found: Run, ca: RunningCa, issued: list[bytes], sizes: Sizes) -> None:
    requests = ca.revoke_requests(issued[: sizes.revocations])
    half = len(requests) // 2
    for name, connections, part in (
        ("revoke_one", 1, requests[:half]),
        ("revoke_many", sizes.connections, requests[half:]),
    ):
        result, _ = await over_kept(ca.operators, connections, part, ca.revoked_status, ca.cpu_seconds)
        _note(found, name, result)


def _note(found: Run, name: str, result: Result) -> None:
    found[f"{name}_cpu"] = result.cpu_microseconds
    found[f"{name}_rate"] = result.a_second
    found[f"{name}_p50"] = result.p50 * 1e3
    found[f"{name}_p99"] = result.p99 * 1e3
    found[f"{name}_load_busy"] = result.load_busy


def _brief(run: Run) -> str:
    return ", ".join(f"{key.removesuffix('_cpu')} {value:.0f} µs" for key, value in run.items() if key.endswith("_cpu"))


def _sizes(options: argparse.Namespace) -> Sizes:
    if options.smoke:
        return _SMOKE
    return Sizes(
        options.requests,
        max(1, options.requests // 4),
        max(4, options.requests // 4),
        _FULL.ocsp_seconds,
        options.connections,
        options.already_revoked,
        workers=options.workers,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=command.count, default=3, help="each starts both CAs fresh (3)")
    parser.add_argument("--store", action="append", choices=_STORES, help="this store; may be repeated (both)")
    parser.add_argument("--alone", action="store_true", help="without cfssl")
    parser.add_argument(
        "--requests", type=command.count, default=_FULL.kept, help=f"certificates over kept connections ({_FULL.kept})"
    )
    parser.add_argument(
        "--connections", type=command.count, default=_FULL.connections, help=f"at a time ({_FULL.connections})"
    )
    parser.add_argument(
        "--already-revoked",
        type=int,
        default=_FULL.already_revoked,
        help=f"certificates revoked before ({_FULL.already_revoked})",
    )
    parser.add_argument(
        "--workers", type=command.count, default=1, help="processes of ours, more than one on PostgreSQL only (1)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round and the summary there")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is reached in no round")
    parser.add_argument("--smoke", action="store_true", help="only shows that it all runs; its figures mean nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
