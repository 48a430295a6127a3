"""Fills a broker's store as a large fleet leaves it, and measures how the broker restores it.

    .venv/bin/python benchmarks/large_broker_store.py                      100,000 sessions, 333,333 retained messages
    … --sessions 300000                                                    three times as much of everything
    … --state-dir DIR                                                      keep the store, for a broker to start on

A third of the sessions has expired, a third is kept for devices that are away, a third belongs to devices that were
connected when the broker was killed. Each has two subscriptions, every second a message that waits. The store is
restored in a process of its own by what the broker uses when it starts (`broker.process.recovery`), with the default
topic policy, without listeners; then what has expired is removed as in the running broker.

Times are processor time of that process, sizes its resident memory beyond what it had before; `longest_ms` is the
longest stretch of the event loop while what has expired goes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from broker.admission.admission import Admission
from broker.admission.freshness import Freshness
from broker.admission.policy_file import load_policy
from broker.admission.status import RevocationStatus
from broker.engine.engine import Engine
from broker.process.recovery import recover
from broker.reload.policy_change import enforce_at_start
from broker.settings.limits import Limits
from broker.store.dispatch import packed
from broker.store.sqlite import SqliteStore
from broker.upkeep.upkeep import look_rarely, see_to
from provisioning.pki.revocation import RevocationIndex
from provisioning.program.collector import paused

_DOMAIN: Final = "fleet.example"
_GROUPS: Final = 20
_EXPIRY: Final = 7 * 24 * 3600
_KINDS: Final = ("state", "config", "firmware", "position", "health", "tariff", "contact", "seen", "alarm", "mode")
_AUTHORITIES: Final = ":".join(f"{number:040x}" for number in (7, 8))
_CAS: Final = f"{8:040x}:7"
_PAGE: Final = 4096
Row = tuple[Any, ...]


def fill(state_dir: Path, sessions: int) -> None:
    """Write the store into *state_dir*."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    SqliteStore(state_dir / "broker.db").close()
    database = sqlite3.connect(state_dir / "broker.db", isolation_level=None)
    database.execute("PRAGMA synchronous=OFF")
    database.execute("PRAGMA cache_size=-500000")
    database.execute("BEGIN")
    now = time.time()
    for table, rows in (
        ("sessions", _sessions(sessions, now)),
        ("subscriptions", _subscriptions(sessions)),
        ("messages", _messages(sessions)),
        ("deliveries", _deliveries(sessions)),
        ("retained", _retained(sessions * 10 // 3)),
    ):
        columns = len(database.execute(f"PRAGMA table_info({table})").fetchall())
        database.executemany(f"INSERT INTO {table} VALUES ({','.join('?' * columns)})", rows)  # noqa: S608
    database.execute("COMMIT")
    database.close()


def _name(number: int) -> tuple[str, str]:
    return f"group-{number % _GROUPS:02}", f"meter-{number:07}"


def _sessions(sessions: int, now: float) -> Iterator[Row]:
    for number in range(sessions):
        group, name = _name(number)
        certificate = f"{7:040x}:{(number + 1) << 128:x}"
        ended_at = (now - 2 * _EXPIRY, now - 3600.0, None)[number % 3]
        will: Row = (None,) * 7
        left_with: Row = (None, None, None)
        held: Row = (None, None)
        if ended_at is None:
            will = (f"fleet/{group}/{name}/event".encode(), b'{"gone": true}', 1, 0, b"", None, 30)
            held = (certificate, _AUTHORITIES)
            left_with = (*held, _CAS)
        owner = f"spiffe://{_DOMAIN}/device/{group}/{name}"
        yield number + 1, name, owner, 1, _EXPIRY, ended_at, *will, *held, *left_with


def _subscriptions(sessions: int) -> Iterator[Row]:
    for number in range(sessions):
        group, name = _name(number)
        yield number + 1, f"fleet/{group}/{name}/cmd/#", 1, 0, 0, 0, b"", 0
        yield number + 1, f"fleet/{group}/{name}/cmd/+/now", 1, 0, 0, 0, b"", 0


def _messages(sessions: int) -> Iterator[Row]:
    for number in range(0, sessions, 2):
        group, name = _name(number)
        yield number + 1, f"fleet/{group}/{name}/cmd/set".encode(), b'{"interval": %d}' % number, 1, 0, b"", None


def _deliveries(sessions: int) -> Iterator[Row]:
    for number in range(0, sessions, 2):
        yield number + 1, number + 1, 1, 0, b"", "", 1, packed([number + 1])


def _retained(retained: int) -> Iterator[Row]:
    for number in range(retained):
        group, name = _name(number // len(_KINDS))
        topic = f"fleet/{group}/{name}/{_KINDS[number % len(_KINDS)]}"
        payload = b'{"at": 1764000000, "value": %d, "unit": "watt hours", "ok": true}' % number
        yield topic, topic.encode(), payload, 1, 1, b"", None, f"/device/{_DOMAIN}/{name}", number + 1


class Steps:
    """What each step took."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self._cpu = time.process_time()
        self._memory = _memory()

    def done(self, step: str) -> None:
        """Note *step*, which ends here; its figures are those since the last one."""
        cpu, memory = time.process_time(), _memory()
        self.figures[f"{step}_s"] = round(cpu - self._cpu, 2)
        self.figures[f"{step}_mb"] = round((memory - self._memory) / 1e6)
        self._cpu, self._memory = cpu, memory


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


async def restore(state_dir: Path, said: Callable[[str], None]) -> dict[str, Any]:
    """Restore what is in *state_dir*, and remove what has expired; return the figures."""
    loop = asyncio.get_running_loop()
    freshness = Freshness(300.0)
    freshness.current(loop.time())
    admission = Admission(RevocationStatus(RevocationIndex(), freshness), load_policy(None), _DOMAIN)
    engine = Engine(admission, Limits(max_retained=10_000_000), loop.call_soon, loop.time())
    gc.collect()
    steps = Steps()
    store = SqliteStore(state_dir / "broker.db")
    with paused():
        journal = recover(engine, store, loop.time(), time.time())
        gc.freeze()
    steps.done("recovered")
    store.attach(journal, loop, lambda: engine.stored(loop.time()), lambda: engine.not_stored(loop.time()))
    journal.begin, engine.turn.after = store.begin, journal.turn_ended
    journal.again = lambda: engine.turn.later(lambda: engine.go_on(loop.time()))
    enforce_at_start(engine, loop.time())
    look_rarely()
    steps.done("policy")
    watch = asyncio.create_task(_longest_stretch(lambda seconds: steps.figures.update(longest_ms=round(seconds * 1e3))))
    begun = time.monotonic()
    kept = len(engine.registry)
    while True:
        await see_to(engine, loop.time)
        engine.turn.request()
        await asyncio.sleep(0.05)
        if len(engine.registry) == kept and not journal.dirty:
            break
        kept = len(engine.registry)
    watch.cancel()
    steps.done("expired")
    steps.figures["expired_wall_s"] = round(time.monotonic() - begun, 2)
    figures = {"sessions": kept, "retained": engine.retained.count, **steps.figures}
    said(json.dumps(figures))
    store.close()
    return figures


async def _longest_stretch(tell: Callable[[float], None]) -> None:
    """Tell the processor time of the longest stretch in which the event loop has served nobody else."""
    longest = 0.0
    while True:
        before = time.thread_time()
        await asyncio.sleep(0.001)
        if (stretch := time.thread_time() - before) > longest:
            longest = stretch
            tell(longest)


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--state-dir", type=Path)
    parser.add_argument("--only-restore", action="store_true", help="the store in --state-dir was filled before")
    options = parser.parse_args()
    if options.only_restore:
        asyncio.run(restore(options.state_dir, print))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        state_dir = options.state_dir or Path(folder)
        fill(state_dir, options.sessions)
        again = [sys.executable, __file__, "--only-restore", "--state-dir", str(state_dir)]
        return subprocess.run(again, check=False, env={**os.environ}).returncode


if __name__ == "__main__":
    sys.exit(main())
