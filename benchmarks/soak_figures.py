"""Takes the figures of a round: processor time, memory, descriptors, threads, objects, rows, log lines and others.

Rules
-----
1. A figure that cannot be had, because its process was killed meanwhile or the figure is not due, is NaN, not 0.
2. Rows are counted by a reader of its own: the programs are not asked, and do no work for it.
3. Log lines are counted by their code, or by their words if they have none. An error is one where nothing was done to
   the stand in that round; a round begins in good weather, when what an earlier one did is over.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg
from soak_stand import Program, Stand

from provisioning.store.every_table import EVERY_TABLE

_BROKERS: Final = (
    *("sessions", "subscriptions", "messages", "deliveries", "remaining", "progress", "incoming", "retained"),
    "replayed",
)
_COUNT_SECONDS: Final = 10


@dataclass
class Log:
    """Where in a program's log we are, and what its lines have been."""

    path: Path
    offset: int = 0
    errors: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)

    def take(self) -> Counter[str]:
        """Return how many lines of each kind have been added since."""
        kinds: Counter[str] = Counter()
        with self.path.open("rb") as file:
            file.seek(self.offset)
            added = file.read()
        whole = added.rfind(b"\n") + 1
        self.offset += whole
        for line in added[:whole].splitlines():
            kinds[self._kind(line)] += 1
        return kinds

    def _kind(self, line: bytes) -> str:
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            if b"Traceback" in line:
                self.tracebacks.append(line.decode(errors="replace")[:300])
            return "other"
        kind = str(said.get("code") or said.get("event"))
        if "Traceback" in str(said.get("exception", "")):
            self.tracebacks.append(f"{kind}: {str(said['exception'])[-600:]}")
        if said.get("level") in ("error", "critical"):
            self.errors.append(f"{kind}: {str(said.get('event'))[:100]} {str(said.get('error', ''))[:160]}".strip())
        return kind


class Figures:
    """The figures of all rounds of a *stand*."""

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self.logs = {program.name: Log(program.log) for program in (stand.service, stand.broker)}
        self.rounds: list[dict[str, float]] = []
        self.errors: list[str] = []
        """What the logs call errors in calm rounds (rule 3)."""
        self.types: dict[str, list[dict[str, int]]] = {}
        self.counted = 0
        """How many operations there have been by the last round."""
        self._cpu: dict[str, tuple[int, float]] = {}
        self._database_cpu = 0.0

    async def take(self, operations: int, *, objects: bool, calm: bool) -> dict[str, float]:
        """Take a round's, in which there were so many *operations*; *objects*: count these too; *calm*: no fault."""
        self.counted += operations
        row: dict[str, float] = {"operations": operations, "at": time.monotonic()}
        for program in (self._stand.service, self._stand.broker):
            row |= self._process(program, operations)
            row |= await self._objects(program, due=objects)
            for kind, number in self.logs[program.name].take().items():
                row[f"log {program.name} {kind}"] = number
            errors = self.logs[program.name].errors
            self.errors += [f"{program.name}: {each}" for each in errors if calm]
            errors.clear()
        server = self._stand.server
        if server is not None:
            used, self._database_cpu = server.cpu_seconds() - self._database_cpu, server.cpu_seconds()
            row["postgresql CPU ms/operation"] = used * 1000 / operations if operations and used > 0 else math.nan
        row |= await asyncio.to_thread(self._rows)
        self.rounds.append(row)
        return row

    def _process(self, program: Program, operations: int) -> dict[str, float]:
        pid, name = program.pid, program.name
        used = program.running.cpu_seconds()
        before = self._cpu.get(name, (0, 0.0))
        self._cpu[name] = (pid, used)
        proc = Path(f"/proc/{pid}")
        threads = sum(1 for _ in (proc / "task").iterdir())
        return {
            f"{name} life": program.starts,
            f"{name} CPU ms/operation": (
                (used - before[1]) * 1000 / operations if before[0] == pid and operations else math.nan
            ),
            f"{name} RSS MiB": program.running.memory_kib() / 1024,
            f"{name} descriptors": sum(1 for _ in (proc / "fd").iterdir()),
            f"{name} threads": threads,
        }

    async def _objects(self, program: Program, *, due: bool) -> dict[str, float]:
        names = (f"{program.name} objects", f"{program.name} garbage objects")
        if not due:
            return dict.fromkeys(names, math.nan)
        program.objects.unlink(missing_ok=True)
        os.kill(program.pid, signal.SIGUSR2)
        deadline = time.monotonic() + _COUNT_SECONDS
        while not program.objects.exists():
            if time.monotonic() > deadline:
                return dict.fromkeys(names, math.nan)
            await asyncio.sleep(0.05)
        found = json.loads(program.objects.read_text())
        self.types.setdefault(f"{program.name} {program.starts}", []).append(found["types"])
        return dict(zip(names, (found["objects"], found["garbage"]), strict=True))

    def _rows(self) -> dict[str, float]:
        stand = self._stand
        state = stand.folder / "broker" / "broker.db"
        row = dict(_sqlite_rows(state, "broker", _BROKERS))
        row["broker WAL KiB"] = _size(state.with_name("broker.db-wal")) / 1024
        tables = sorted(EVERY_TABLE.tables)
        if stand.server is None or stand.database is None:
            row |= _sqlite_rows(stand.ca / "fleet.db", "service", tables)
            row["service WAL KiB"] = _size(stand.ca / "fleet.db-wal") / 1024
            return row
        url = stand.server.libpq_url(stand.database)
        with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
            for table in tables:
                found = connection.execute(_counting(table).encode()).fetchone()
                row[f"rows service.{table}"] = float(found[0]) if found else math.nan
        return row

    def grown_types(self, program: Program, most: int = 8) -> list[str]:
        """Return which types of objects there are more of than at first, in the life of *program* counted longest."""
        counted = max(
            (each for name, each in self.types.items() if name.startswith(f"{program.name} ")), key=len, default=[]
        )
        if len(counted) < 2:
            return []
        first, last = counted[len(counted) // 4], counted[-1]
        more = Counter({name: number - first.get(name, 0) for name, number in last.items()})
        return [f"{name} +{number}" for name, number in more.most_common(most) if number > 0]


def _sqlite_rows(path: Path, owner: str, tables: Sequence[str]) -> dict[str, float]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    try:
        return {f"rows {owner}.{table}": float(connection.execute(_counting(table)).fetchone()[0]) for table in tables}
    finally:
        connection.close()


def _counting(table: str) -> str:
    return f"SELECT count(*) FROM {table}"  # noqa: S608 - The tables' names are ours.


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
