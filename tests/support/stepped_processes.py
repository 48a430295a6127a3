"""Service processes on one PostgreSQL, stepped: a test decides which of them executes its next statement.

    with stepped(url, ("first", "second")) as stage:
        def run(choices: Choices) -> None:
            …                                                   # prepared as ever
            found = stage.play({"first": lambda fleet: …, "second": lambda fleet: …}, choices)
            assert …
        every_choice(run)

Theory
------
Each process is the service's real parts (`tests.support.fleet`) with a thread, an event loop and database sessions of
its own. Whatever it sends to the server passes a gate, where it waits to be chosen::

    first   ─ works ─ gate ────────── statement ─ works ─ gate …
    second  ───────── works ─ gate ─────────────────────── statement that waits for first's lock … ─ works ─ gate

One process works at a time. It has had its turn when it is at the gate again, has ended, or waits in the server for a
lock; who waits goes on by itself when the lock is released, which is looked for after each turn. So an order of choices
always leads to the same, and `tests.support.interleavings` can try them all.

Rules
-----
1. A statement is one journey to the server: ``BEGIN``, the writers' lock and the first savepoint are one.
2. Who waits at the gate can lose its session instead, or with the answer to a COMMIT, as when the network is gone; or
   be killed: then its session ends and it does nothing any more.
3. Errors say who did what, in order.

Handles: one call at a time in each process; on SQLite `tests.support.stepped_sqlite`. Does not handle: what a process
does between two statements with its files, and time, which only a test moves.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import math
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy.engine import make_url

from provisioning.errors import Pending, Refused
from provisioning.store import engines
from provisioning.store.loop_waits import LoopConnection
from tests.support.fleet import Fleet, open_fleet
from tests.support.interleavings import Choices

CUT: Final = "✂"
"""Behind a process's name, in a choice: its session is lost before the statement is sent."""
DEAF: Final = "∅"
"""The same: a COMMIT is executed, and the session is lost before its answer is heard."""
KILL: Final = "†"
"""The same: the process is killed before the statement is sent."""
Act = Callable[[Fleet], Awaitable[object]]

_PATIENCE: Final = 60.0
_LIMITS: Final = "-c lock_timeout=2min -c statement_timeout=2min -c idle_in_transaction_session_timeout=2min"
"""Who waits to be chosen, on a busy machine, is not taken for one that has stopped."""
_QUICK: Final = 0.002
"""A statement that takes longer may wait for a lock."""
_WAITS: Final = "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = ANY(%s) AND NOT granted)"
_END: Final = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE application_name = %s"
BEGIN_IMMEDIATE: Final = "BEGIN IMMEDIATE"
_WRITER: Final = ("BEGIN ISOLATION LEVEL READ COMMITTED", BEGIN_IMMEDIATE)
"""How a writer's transaction begins: `provisioning.store.postgresql_group`, `provisioning.store.sqlite_writer`."""


class Killed(Exception):
    """What a call ends with whose process was killed."""


class Lost(Exception):
    """Whoever waited at the gate is not to go on: its process was killed."""


class Where(Enum):
    WORKS = "works"
    GATE = "at the gate"
    WAITS = "waits for a lock"
    ENDED = "has ended"


class Gate:
    """Where one process waits until it is chosen."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed: Final = changed
        self.where = Where.ENDED
        self.is_open = True
        """Whether nobody steps it."""
        self.killed = False
        self.deaf = False
        """Whether the answer to the statement is lost."""
        self.coarse = False
        """Whether statements in a writer's transaction, but for the last one, need no choice."""
        self.statement = ""
        self.pids: set[int] = set()
        self.writing = False
        """Whether a writer's transaction has begun."""

    def come(self, statement: str, *pids: int) -> bool:
        """Wait to be chosen for *statement*, of the sessions *pids*; return whether its answer is lost.

        Raises `Lost` if the process is killed.
        """
        with self._changed:
            if self.is_open:
                return False
            if self.killed:
                raise Lost
            self.pids = set(pids)
            inside = self.writing
            if statement.startswith(_WRITER):
                self.writing = True
            elif inside and (ends := statement.endswith(("COMMIT", "ROLLBACK"))):
                self.writing = not ends
            if self.coarse and inside and self.writing:
                return False
            self.statement = statement
            self.where = Where.GATE
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self.is_open or self.where is Where.WORKS, _PATIENCE):
                raise AssertionError("nobody chooses")
            if self.killed:
                raise Lost
            deaf, self.deaf = self.deaf, False
            return deaf

    def begin(self) -> None:
        self.where, self.is_open, self.killed, self.deaf, self.writing = Where.WORKS, False, False, False, False
        self.pids = set()


_gates: dict[str, Gate] = {}


def _gated(connection: LoopConnection, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
    gate = _gates.get(connection.info.parameter_status("application_name") or "")
    statement = _text(gen, connection)
    if gate is None or statement is None:
        return _ungated(connection, gen, interval, timeout)
    try:
        deaf = gate.come(statement, connection.pgconn.backend_pid)
    except Lost:
        connection.pgconn.finish()
        raise psycopg.OperationalError("it is killed") from None
    answer = _ungated(connection, gen, interval, timeout)
    if deaf:
        connection.pgconn.finish()
        raise psycopg.OperationalError("the answer is lost")
    return answer


_ENDS: Final = {"_commit_gen": "COMMIT", "_rollback_gen": "ROLLBACK"}
_ungated: Final = LoopConnection.wait


def _text(gen: Any, connection: LoopConnection) -> str | None:
    """Return the statement, None if nothing is sent."""
    if gen.__name__ in _ENDS:
        return None if connection.pgconn.transaction_status == TransactionStatus.IDLE else _ENDS[gen.__name__]
    query = gen.gi_frame.f_locals.get("query")
    text = query.decode() if isinstance(query, bytes) else str(query)
    return None if query is None else text


@dataclass
class Process:
    """One process of the service, in threads of this one."""

    name: str
    url: str
    gate: Gate
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    fleet: Fleet = field(init=False)

    def start(self, first: Process | None) -> None:
        """Open its sessions; it is another process of the same service as *first*."""
        self._thread = threading.Thread(target=self.loop.run_forever, name=self.name)
        self._thread.start()
        self._opened = contextlib.AsyncExitStack()
        fleet = open_fleet(self.url, None if first is None else first.fleet.authority, is_current=True)
        self.fleet = self.call(self._opened.enter_async_context(fleet))
        self.open_sessions()

    def open_sessions(self) -> None:
        """Open all that a call may use, again if they were lost: else that would be among the steps, now and then."""
        self.call(self._open_sessions())

    async def _open_sessions(self) -> None:
        store = self.fleet.database
        asks: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: store.write(lambda connection: connection.exec_driver_sql("SELECT 1"), short=True),
            lambda: store.look(lambda connection: connection.exec_driver_sql("SELECT 1")),
            lambda: store.read(lambda connection: connection.exec_driver_sql("SELECT 1")),
        )
        for ask in asks:
            async with asyncio.timeout(_PATIENCE):
                while True:
                    try:
                        await ask()
                        break
                    except Refused:
                        await asyncio.sleep(0)

    def stop(self) -> None:
        self.call(self._opened.aclose())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def submit(self, awaitable: Awaitable[Any]) -> concurrent.futures.Future[Any]:
        async def run() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(run(), self.loop)

    def call(self, awaitable: Awaitable[Any]) -> Any:
        """Let it do something that is not stepped."""
        return self.submit(awaitable).result(_PATIENCE)


class Stage:
    """The processes, and who sees from outside what they wait for."""

    def __init__(self, processes: Mapping[str, Process], outside: Any, changed: threading.Condition) -> None:
        self.processes: Final = processes
        self.outside: Final = outside
        self._changed: Final = changed
        self.told: list[str] = []
        """What was executed, in order."""

    def play(
        self,
        acts: Mapping[str, Act],
        choices: Choices,
        *,
        switches: int | None = None,
        lost: Collection[str] = (),
        coarse: bool = False,
        look: Callable[[], object] = lambda: None,
    ) -> dict[str, object]:
        """Let processes act, in the order of *choices*; return what each call returned, or raised.

        *switches*: choose at most so often another one than who could go on. *lost*: the choices that may also be
        taken, once, instead of a statement: a name with `CUT`, `DEAF` or `KILL`. *coarse*: a writer's transaction is
        two steps. *look* is called after each step, by nobody of the processes.
        """
        self.told = []
        calls: dict[str, concurrent.futures.Future[Any]] = {}
        lost = set(lost)
        last = ""
        try:
            for name, act in acts.items():
                gate = self._gate(name)
                gate.begin()
                gate.coarse = coarse
                calls[name] = self.processes[name].submit(self._acting(gate, act, self.processes[name].fleet))
                self._settle([name])
            while ready := tuple(name for name in acts if self._may_go(self._gate(name))):
                options = ready
                if last in ready:  # First who went on: the first order has no switch.
                    options = (last, *(name for name in ready if name != last)) if switches != 0 else (last,)
                losses = tuple(each for each in sorted(lost) if self._can_be(each, ready))
                chosen = (*options, *losses)[choices.among((*options, *losses))]
                if chosen in losses:
                    lost.clear()
                    self._lose(chosen[:-1], chosen[-1])
                else:
                    if switches and last in ready and chosen != last:
                        switches -= 1
                    self._step(chosen)
                    last = chosen
                self._settle(acts)
                look()
            waiting = [name for name in acts if self._gate(name).where is not Where.ENDED]
            assert waiting == [], "they wait, and nobody can go on"
            return {name: self._outcome(name, calls[name]) for name in acts}
        finally:
            self._let_go(acts, calls)

    def _gate(self, name: str) -> Gate:
        return self.processes[name].gate

    def _may_go(self, gate: Gate) -> bool:
        return gate.where is Where.GATE

    async def _acting(self, gate: Gate, act: Act, fleet: Fleet) -> object:
        try:
            return await act(fleet)
        finally:
            with self._changed:
                if not gate.is_open:
                    gate.where = Where.ENDED
                    self._changed.notify_all()

    def _step(self, name: str) -> None:
        gate = self._gate(name)
        self.told.append(f"{name}: {' '.join(gate.statement.split())[:110]}")
        with self._changed:
            gate.where = Where.WORKS
            self._changed.notify_all()

    def _can_be(self, loss: str, ready: Sequence[str]) -> bool:
        name = loss[:-1]
        return name in ready and (loss[-1] != DEAF or self._gate(name).statement.endswith("COMMIT"))

    def _lose(self, name: str, what: str) -> None:
        """Lose the session of a process: what it did in a transaction is undone then, at once."""
        gate = self._gate(name)
        self.told.append(f"{name}: {what} {' '.join(gate.statement.split())[:110]}")
        with self._changed:
            gate.killed, gate.deaf = what == KILL, what == DEAF
            if what != CUT:
                gate.where = Where.ENDED if gate.killed else Where.WORKS
                self._changed.notify_all()
        if what != DEAF:
            self.outside.execute(_END, (name,))

    def _settle(self, names: Collection[str]) -> None:
        """Wait until each of *names* that works has had its turn, or waits for a lock; and then who waited for that."""
        gates = {name: self._gate(name) for name in names}
        waiting = [name for name, gate in gates.items() if gate.where is Where.WAITS]
        for name, gate in gates.items():
            if gate.where is Where.WORKS:
                self._await(name, gate)
        for name in waiting:  # Who is given a lock, by the release of another's, has it before that is answered.
            gate = gates[name]
            if not self._waits(gate):
                with self._changed:
                    if gate.where is Where.WAITS:
                        gate.where = Where.WORKS
                self._await(name, gate)

    def _await(self, name: str, gate: Gate) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not self._has_come(gate):
            if self._waits(gate):
                with self._changed:
                    if gate.where is Where.WORKS:
                        gate.where = Where.WAITS
                return
            assert time.monotonic() < deadline, f"{name} neither comes nor waits for a lock"

    def _has_come(self, gate: Gate) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: gate.where is not Where.WORKS, _QUICK)

    def _waits(self, gate: Gate) -> bool:
        (waits,) = self.outside.execute(_WAITS, (list(gate.pids),)).fetchone()
        return bool(waits)

    def _outcome(self, name: str, call: concurrent.futures.Future[Any]) -> object:
        if self._gate(name).killed:
            return Killed()
        error = call.exception(_PATIENCE)
        if error is None:
            return call.result()
        if not isinstance(error, Refused | Pending):
            raise error
        return error

    def _let_go(self, acts: Mapping[str, Act], calls: Mapping[str, concurrent.futures.Future[Any]]) -> None:
        for name in acts:
            gate = self._gate(name)
            with self._changed:
                if gate.killed:  # It sends nothing any more, on no session.
                    gate.where = Where.WORKS
                gate.is_open = not gate.killed
                self._changed.notify_all()
        for name, call in calls.items():
            with contextlib.suppress(Exception):  # Killed, or of an order that has failed: the caller knows.
                call.result(_PATIENCE)
            self._gate(name).is_open = True


@contextlib.contextmanager
def stepped(url: str, names: Sequence[str]) -> Iterator[Stage]:
    """Open a process for each of *names*, on one database."""
    changed = threading.Condition()
    processes: dict[str, Process] = {}
    rested, engines._RESTED_SECONDS = engines._RESTED_SECONDS, math.inf  # type: ignore[misc]  # Asking is a step.
    setattr(LoopConnection, "wait", _gated)  # noqa: B010 - of another signature for mypy
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    outside = psycopg.connect(plain, autocommit=True)
    try:
        for name in names:
            gate = _gates[name] = Gate(changed)
            options = {"application_name": name, "options": _LIMITS}
            own = make_url(url).update_query_dict(options).render_as_string(hide_password=False)
            process = Process(name, own, gate)
            process.start(next(iter(processes.values()), None))
            processes[name] = process
        yield Stage(processes, outside, changed)
    finally:
        for process in processes.values():
            process.stop()
        engines._RESTED_SECONDS = rested  # type: ignore[misc]
        setattr(LoopConnection, "wait", _ungated)  # noqa: B010 - the same
        _gates.clear()
        outside.close()
