"""The same as `tests.support.stepped_processes` on one SQLite file: a service, and commands that work on its store.

    with stepped_on_sqlite(directory, ("first", "second")) as stage: …

Theory
------
Each process has connections of its own, by a path of its own (a link to the directory), which tells whose they are. A
statement passes the gate in Python, below SQLAlchemy and below the statements that bypass it. SQLite has one writer at
a time, and who wants to be that waits in its busy handler: so `BEGIN IMMEDIATE` of who would wait for another process
cannot be chosen. Of who does not wait (the event loop's) it can, and is refused at once.

Rules
-----
1. PRAGMAs, and the beginning and end of reading, are no steps: a snapshot is of the first statement that reads. Where
   writers' transactions are two steps, *coarse*, a snapshot is one.
2. `CUT` is a full disk: the statement fails, and SQLite has rolled the transaction back.
3. `KILL` rolls back what its process has not committed, as the kernel gives back the locks of one that has ended.

Does not handle: faults within a statement of SQLite's own (docs/decisions/0267-faults-call-by-call.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine, event

from provisioning.store import schema, sqlite_lane
from provisioning.store.database import Database
from provisioning.store.utc_date_time import _from_sqlite_text, _sqlite_text
from tests.support.seen_from_outside import Outsider
from tests.support.stepped_processes import BEGIN_IMMEDIATE, CUT, KILL, Gate, Lost, Process, Stage, Where

_PATIENCE: Final = "PRAGMA busy_timeout = "
_HASTE: Final = ("_SHORT_SECONDS", "_SLICE_SECONDS", "_GROUP_SECONDS")
"""Limits of `sqlite_lane` that whoever waits to be chosen would exceed: what comes would depend on the machine."""


class SqliteGate(Gate):
    """Where a process waits, and what it has open."""

    def __init__(self, changed: threading.Condition) -> None:
        super().__init__(changed)
        self.connections: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self.at_gate: _Connection | None = None
        """Whose statement waits."""
        self.full = False
        """Whether the statement fails."""

    @property
    def holds(self) -> bool:
        """Whether it is SQLite's one writer."""
        return any(each.is_writer for each in self.connections)


_gates: dict[Path, SqliteGate] = {}
"""By the links to the directory."""


def come(what: str) -> None:
    """Have the process whose thread this is wait to be chosen for *what* it does with a file, if it is stepped."""
    for link, gate in _gates.items():
        if link.name == threading.current_thread().name and not gate.is_open:
            gate.at_gate = None
            gate.come(what)


class _Cursor(sqlite3.Cursor):
    def execute(self, statement: str, *values: Any) -> Any:
        return self._step(statement, lambda: super(_Cursor, self).execute(statement, *values))

    def executemany(self, statement: str, *values: Any) -> Any:
        return self._step(statement, lambda: super(_Cursor, self).executemany(statement, *values))

    def _step(self, statement: str, execute: Callable[[], Any]) -> Any:
        connection = self.connection
        assert isinstance(connection, _Connection)
        return connection.step(statement, execute)


class _Connection(sqlite3.Connection):
    def __init__(self, database: str, *options: Any, **named: Any) -> None:
        super().__init__(database, *options, **named)
        self.waits = True
        self.is_writer = False
        self.has_read = False
        """Whether the snapshot of a reader's transaction is there."""
        self.gate = _gates.get(Path(database).parent)
        if self.gate is not None:
            self.gate.connections.add(self)

    def cursor(self, *_factory: Any) -> _Cursor:  # type: ignore[override]
        return super().cursor(_Cursor)

    def execute(self, *given: Any) -> Any:
        return self.cursor().execute(*given)

    def step(self, statement: str, execute: Callable[[], Any]) -> Any:
        gate = self.gate
        if statement.startswith(_PATIENCE):
            self.waits = statement != f"{_PATIENCE}0"
        if statement == "BEGIN":
            self.has_read = False
        if gate is None or statement == "BEGIN" or statement.startswith("PRAGMA"):
            return execute()
        if gate.coarse and self.has_read and self.in_transaction and not self.is_writer:
            return execute()
        self.has_read = True
        gate.at_gate = self
        try:
            gate.come(statement)
        except Lost:
            raise self._failed(gate, "it is killed") from None
        if gate.full:
            gate.full = False
            raise self._failed(gate, "database or disk is full")
        try:
            return execute()
        finally:
            if self.is_writer or statement == BEGIN_IMMEDIATE:  # Which is refused at once, if it does not wait.
                self.is_writer = gate.writing = self.in_transaction

    def _failed(self, gate: SqliteGate, why: str) -> sqlite3.OperationalError:
        self.rollback()
        gate.writing = False  # Nor has it begun to, if it was about to.
        error = sqlite3.OperationalError(why)
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
        return error

    def rollback(self) -> None:
        super().rollback()
        if self.is_writer and self.gate is not None:
            self.is_writer = self.gate.writing = False


class SqliteStage(Stage):
    """The processes, and a connection of nobody's."""

    def _may_go(self, gate: Gate) -> bool:
        if not super()._may_go(gate) or gate.statement != BEGIN_IMMEDIATE:
            return super()._may_go(gate)
        assert isinstance(gate, SqliteGate)
        assert gate.at_gate is not None
        others = (each.gate for each in self.processes.values() if each.gate is not gate)
        return not gate.at_gate.waits or not any(isinstance(each, SqliteGate) and each.holds for each in others)

    def _can_be(self, loss: str, ready: Sequence[str]) -> bool:
        gate = self._gate(loss[:-1])
        assert isinstance(gate, SqliteGate)
        return super()._can_be(loss, ready) and (loss[-1] == KILL or gate.at_gate is not None)

    def _lose(self, name: str, what: str) -> None:
        gate = self._gate(name)
        assert isinstance(gate, SqliteGate)
        self.told.append(f"{name}: {what} {' '.join(gate.statement.split())[:110]}")
        assert what == KILL or gate.at_gate is not None
        if what == KILL:
            for connection in gate.connections:
                connection.rollback()
        with self._changed:
            gate.killed, gate.full = what == KILL, what == CUT
            gate.where = Where.ENDED if gate.killed else Where.WORKS
            self._changed.notify_all()

    def _waits(self, gate: Gate) -> bool:  # noqa: ARG002 - Who waits was not chosen.
        return False


@dataclass
class SqliteOutsider(Outsider):
    """A reader of a store on SQLite."""

    def rows(self, statement: str, *values: object) -> list[Any]:
        given = [_sqlite_text(each) if isinstance(each, datetime) else each for each in values]
        found: list[Any] = self.session.execute(statement.replace("%s", "?"), given).fetchall()
        return found

    def entry_of(self, row: Sequence[Any]) -> Sequence[Any]:
        number, at, *rest = row
        return number, _from_sqlite_text(at), *rest


@contextlib.contextmanager
def stepped_on_sqlite(directory: Path, names: Sequence[str]) -> Iterator[Stage]:
    """Open a process for each of *names*, on a new store in *directory*."""
    path, changed = directory / "fleet.db", threading.Condition()
    asyncio.run(_made(path))
    before = {name: getattr(sqlite_lane, name) for name in _HASTE}
    processes: dict[str, Process] = {}
    links = {name: directory / name for name in names}

    def gated(_dialect: object, _record: object, _given: object, options: dict[str, Any]) -> None:
        options["factory"] = _Connection

    event.listen(Engine, "do_connect", gated)
    outside = sqlite3.connect(path, isolation_level=None)
    try:
        for name in _HASTE:
            setattr(sqlite_lane, name, math.inf)
        for name, link in links.items():
            link.symlink_to(directory)
            gate = _gates[link] = SqliteGate(changed)
            process = processes[name] = Process(name, f"sqlite:///{link / path.name}", gate)
            process.start(next(iter(processes.values())) if len(processes) > 1 else None)
        yield SqliteStage(processes, outside, changed)
    finally:
        for process in processes.values():
            process.stop()
        event.remove(Engine, "do_connect", gated)
        for name, value in before.items():
            setattr(sqlite_lane, name, value)
        for link in links.values():
            _gates.pop(link, None)
        outside.close()


async def _made(path: Path) -> None:
    database = Database(f"sqlite:///{path}")
    await schema.upgrade(database)
    await database.close()
