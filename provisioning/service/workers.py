"""Several service processes of one command: forked and watched by a supervisor, and stopped with it.

Theory
------
The GIL binds a process to one core. So the command starts several workers, each a whole service on
the same two ports (`provisioning.connections.listening`), and itself only watches them::

    supervisor   binds the ports ─► fork worker 1 ─ready─► fork the others ─all ready─► one line on stdout
                    │
                    ├─ a worker ends          ─► log, fork another at its place, later and later
                    ├─ SIGTERM, SIGINT        ─► SIGTERM to each, wait for all
                    ├─ SIGHUP                 ─► read anew, SIGHUP to each; later ones have what was read last;
                    │                            the same as SIGTERM if the terminal is gone
                    └─ the supervisor ends    ─► each worker's control socket ends: it stops by itself

Workers are forked, not started with an interpreter of their own: they share the memory of imported modules, they have
the settings (including the passphrase) without passing them by command line or environment, and a worker that
replaces another after an upgrade of the files on disk is the program that was started, not half of the next one. That
is safe because the supervisor never has anything that a fork would break: no thread, no event loop, no connection, no
open token.

Rules
-----
1. The first worker is ready before the second is forked: what is done once (migrations, the audit log's key, the first
   CRLs, the server's certificate) is done by one, and errors are reported once.
2. A worker that ends before all have been ready ends the service, with its exit code; it has logged the reason itself.
3. Later, one that ends is replaced: at once the first time, then after pauses that double up to `_LONGEST_PAUSE`.
   `_MOST` in a row, none of which ran for `_STEADY_SECONDS`, end the service with the last one's exit code, but
   only if no other worker is ready: those that serve continue, and restarts are retried for as long as it takes. An
   unavailable database prevents workers from starting, and ends none that runs.
4. A stop that takes longer than `_STOP_SECONDS` is ended with SIGKILL, and is an error.
5. No worker outlives the supervisor, however that ends: each waits for end of file on its control socket, whose other
   side only the supervisor has.

Handles: POSIX processes and signals; one thread.
Does not handle: what workers do (`provisioning.service.server`), or what they tell each other
(`provisioning.service.fellow_workers`, where a hanging worker is noticed: it does not answer); changing the number of
workers while they run.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Final, NoReturn

import structlog

from provisioning.connections.listening import Listening
from provisioning.program import interruption, termination
from provisioning.program.hangup import SETTLE_SECONDS, Hangups
from provisioning.program.service_manager import NOBODY, ServiceManager, show_where_it_hangs
from provisioning.service.living_workers import LivingWorkers
from provisioning.service.worker_place import READY, WorkerPlace

log = structlog.get_logger(__name__)

_STEADY_SECONDS: Final = 60.0
_MOST: Final = 6
_LONGEST_PAUSE: Final = 15.0
_STOP_SECONDS: Final = 30.0
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_HANDLED: Final = (*_STOP_SIGNALS, signal.SIGHUP, signal.SIGCHLD)
_ENDED_AS_TOLD: Final = (0, termination.EXIT_CODE, interruption.EXIT_CODE)
"""Exit codes of a worker that was told to stop, perhaps before it had installed its handlers."""


@dataclass(slots=True)
class _Slot:
    """One worker's place, and its current process."""

    number: int
    listening: Listening
    inbox: socket.socket
    outbox: socket.socket
    """What is written there is read from `inbox`."""
    pid: int | None = None
    control: socket.socket | None = None
    ready_at: float | None = None
    starts: int = 0
    failures: int = 0
    """Number of workers in a row that did not run long."""
    due: float = 0.0
    """When the next one is forked, on the monotonic clock."""


@dataclass(slots=True)
class _Stop:
    """The end has begun."""

    code: int
    killed_at: float


@dataclass(slots=True)
class Supervisor:
    """Runs a worker for each of *places* until a signal or a worker that cannot be replaced."""

    places: Sequence[Listening]
    """Where each worker listens."""
    work: Callable[[WorkerPlace], int]
    """The worker's main function: called in its process, returns its exit code."""
    on_ready: Callable[[], None]
    """Called once, when all workers have been ready."""
    on_hangup: Callable[[], None] = lambda: None
    """Called on SIGHUP, before the workers are told: workers forked later have its result."""
    manager: ServiceManager = NOBODY
    """Told when all workers have been ready, when the end begins, and until then that the supervisor is alive."""
    first_pause_seconds: float = 0.5
    _slots: list[_Slot] = field(default_factory=list)
    _living: LivingWorkers = field(init=False)
    _wake: tuple[socket.socket, socket.socket] = field(init=False)
    """The first becomes readable when a signal has arrived."""
    _all_ready: bool = False
    _asked_to_stop: bool = False
    _hung_up: bool = False
    _hangups: Hangups = field(default_factory=Hangups)
    _stop: _Stop | None = None

    def run(self) -> int:
        """Return the exit code of the service."""
        gc.collect()
        gc.freeze()  # A collection in a worker would touch, and so copy, every shared page.
        if self.manager.beat_seconds is not None:
            show_where_it_hangs()
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._signals())
            self._living = stack.enter_context(contextlib.closing(LivingWorkers()))
            for number, listening in enumerate(self.places, 1):
                outbox, inbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
                for each in (outbox, inbox):
                    each.setblocking(False)
                    stack.enter_context(each)
                self._slots.append(_Slot(number, listening, inbox, outbox))
            while True:
                if self._hung_up:
                    self._heed_hangup()
                if self._asked_to_stop and self._stop is None:
                    self._begin_stop(0)
                self._hear()
                self._reap()
                if self._stop is None:
                    self._fork_due()
                elif all(slot.pid is None for slot in self._slots):
                    return self._stop.code
                else:
                    self._kill_overdue(self._stop)
                self._wait()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Take the signals while the block runs."""
        wake, waker = self._wake = socket.socketpair()
        wake.setblocking(False)
        waker.setblocking(False)
        handled = [number for number in _HANDLED if number != signal.SIGHUP or self._hangups.heeded]
        before = {number: signal.signal(number, self._on_signal) for number in handled}
        previous = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous)
            for number, handler in before.items():
                signal.signal(number, handler)
            wake.close()
            waker.close()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if number in _STOP_SIGNALS:
            self._asked_to_stop = True
        elif number == signal.SIGHUP:
            self._hung_up = True

    def _heed_hangup(self) -> None:
        time.sleep(SETTLE_SECONDS)
        self._hung_up = False
        if self._hangups.terminal_is_gone():
            self._asked_to_stop = True
        elif self._stop is None:
            self.on_hangup()
            self._tell(signal.SIGHUP)

    def _wait(self) -> None:
        """Wait until something has happened or is due."""
        wake, _ = self._wake
        waiting = select.poll()
        waiting.register(wake, select.POLLIN)
        for slot in self._slots:
            if slot.control is not None:
                waiting.register(slot.control, select.POLLIN)
        times = [slot.due for slot in self._slots if slot.pid is None and self._stop is None and self._may_fork(slot)]
        if self._stop is not None:
            times.append(self._stop.killed_at)
        if self.manager.beat_seconds is not None:
            self.manager.beat()
            times.append(time.monotonic() + self.manager.beat_seconds)
        seconds = None if not times else max(0.0, min(times) - time.monotonic())
        waiting.poll(None if seconds is None else seconds * 1000 + 1)
        with contextlib.suppress(BlockingIOError):
            wake.recv(4096)

    def _may_fork(self, slot: _Slot) -> bool:
        return slot.number == 1 or self._all_ready or self._slots[0].ready_at is not None

    def _fork_due(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            if slot.pid is None and slot.due <= now and self._may_fork(slot):
                self._fork(slot)

    def _fork(self, slot: _Slot) -> None:
        control, theirs = socket.socketpair()
        control.setblocking(False)
        slot.starts += 1
        sys.stdout.flush()
        sys.stderr.flush()
        # A signal that arrives in between is the parent's, or waits until the child has its own handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            pid = os.fork()
            if pid == 0:
                control.close()
                self._become(slot, theirs)
        except OSError as error:  # No memory, or too many processes: as if it had ended at once.
            log.error("worker cannot be forked", code="WORKER_ENDED", worker=slot.number, detail=error.strerror)
            control.close()
            self._ended(slot, 1)
            return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
            theirs.close()
        slot.pid, slot.control, slot.ready_at = pid, control, None

    def _become(self, slot: _Slot, control: socket.socket) -> NoReturn:
        """Be the worker at *slot*, to the end of the process."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            for end in self._wake:
                end.close()
            for each in self._slots:  # Rule 5: only the supervisor may have the supervisor's sides.
                if each.control is not None:
                    each.control.close()
                if each is slot:
                    each.outbox.close()
                else:
                    each.inbox.close()
                    each.listening.close()
            fellows = {each.number: each.outbox for each in self._slots if each is not slot}
            self._living.enter(slot.number)
            place = WorkerPlace(slot.number, slot.starts, slot.listening, control, slot.inbox, fellows, self._living)
            if self._hangups.heeded:  # Until the worker does that itself.
                signal.signal(signal.SIGHUP, functools.partial(_note_hangup, place))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
            code = self.work(place)
        except KeyboardInterrupt:
            code = interruption.EXIT_CODE
        except BaseException:  # noqa: BLE001 - the process ends here, and must say why
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)  # A worker must not run the supervisor's exit handlers.

    def _hear(self) -> None:
        """Note which workers have become ready."""
        for slot in self._slots:
            if slot.control is None:
                continue
            try:
                said = slot.control.recv(64)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                said = b""
            if said == READY:
                slot.ready_at = time.monotonic()
                if self._all_ready:
                    log.info("worker is back", code="WORKER_BACK", worker=slot.number, pid=slot.pid)
            else:  # It has ended, or is about to.
                slot.control.close()
                slot.control = None
        if not self._all_ready and self._stop is None and all(slot.ready_at is not None for slot in self._slots):
            self._all_ready = True
            self.on_ready()
            self.manager.ready()

    def _reap(self) -> None:
        for slot in self._slots:
            if slot.pid is None:
                continue
            pid, status = os.waitpid(slot.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self._ended(slot, code if code >= 0 else 128 - code)

    def _ended(self, slot: _Slot, code: int) -> None:
        """Do what follows from the end of a worker: nothing, the end of the service, or another worker."""
        now = time.monotonic()
        lived = 0.0 if slot.ready_at is None else now - slot.ready_at
        pid, slot.pid, slot.ready_at = slot.pid, None, None
        if slot.control is not None:
            slot.control.close()
            slot.control = None
        if self._stop is not None or self._asked_to_stop:
            if code not in _ENDED_AS_TOLD and self._stop is not None:
                self._stop.code = self._stop.code or code
        elif not self._all_ready:
            self._begin_stop(code or 1)
        else:
            self._replace(slot, pid, code, lived, now)

    def _replace(self, slot: _Slot, pid: int | None, code: int, lived: float, now: float) -> None:
        """Have another worker forked, now or later, unless none can be kept running (rule 3)."""
        slot.failures = 1 if lived >= _STEADY_SECONDS else slot.failures + 1
        if slot.failures >= _MOST and all(each.ready_at is None for each in self._slots):
            log.error(
                "worker cannot be kept running",
                code="WORKER_ENDED",
                worker=slot.number,
                pid=pid,
                exit_code=code,
                times=slot.failures,
            )
            self._begin_stop(code or 1)
            return
        doublings = min(slot.failures - 2, _MOST)
        pause = 0.0 if slot.failures == 1 else min(self.first_pause_seconds * 2**doublings, _LONGEST_PAUSE)
        slot.due = now + pause
        if pause:  # The others accept connections meanwhile.
            slot.listening.interrupt()
        log.error(
            "worker ended, another takes its place",
            code="WORKER_ENDED",
            worker=slot.number,
            pid=pid,
            exit_code=code,
            pause=pause,
        )

    def _begin_stop(self, code: int) -> None:
        self.manager.stopping()
        self._stop = _Stop(code, time.monotonic() + _STOP_SECONDS)
        for slot in self._slots:  # A port is free when its workers have stopped accepting.
            slot.listening.close()
        self._tell(signal.SIGTERM)

    def _kill_overdue(self, stop: _Stop) -> None:
        if time.monotonic() >= stop.killed_at:
            log.error("workers have not stopped in time", code="STOP_GAVE_UP", seconds=_STOP_SECONDS)
            stop.code, stop.killed_at = stop.code or 1, time.monotonic() + _STOP_SECONDS
            self._tell(signal.SIGKILL)

    def _tell(self, number: signal.Signals) -> None:
        for slot in self._slots:
            if slot.pid is not None:  # It has not been waited for, so the process number is still its own.
                os.kill(slot.pid, number)


def _note_hangup(place: WorkerPlace, _number: int, _frame: FrameType | None) -> None:
    """Note SIGHUP; a handler and not SIG_IGN, which would mean that it is ignored for ever."""
    place.hung_up = True
