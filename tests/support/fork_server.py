"""A program of ours with its imports done, which starts processes by forking: for `tests.support.programs`.

`tests.support.imported` creates one for each test worker that asks, with two sockets: one carries the worker's orders,
the other accepts a connection from every stand-in for ``python`` (`forked_python.c`). Importing is most of a start's
cost, and hundreds of tests start a process; all that comes after it is the program's own: `runpy` runs ``__main__.py``
of the order's package, or its module, as ``python -m`` does, with the arguments, environment, folder and standard
streams of the order.

Rules
-----
1. One thread, no event loop, and nothing of the program is called before the fork: whatever the program creates, it
   creates in its own process.
2. A forked process has the descriptors of one started afresh: 0, 1 and 2; and its command line, for searches for
   left-over processes.
3. When the test worker has ended, the remaining processes are killed.
4. A process that was ordered over its own connection is killed as soon as that is closed.
5. A program's threads, exit handlers and streams end as in the interpreter; only the final release of every object is
   left to processes started afresh.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import io
import os
import runpy
import select
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, Self, TextIO

LARGEST_ORDER = 128 * 1024
"""Bytes: arguments and environment."""
STREAMS = 3
_LARGEST_INT = 2**31 - 1
ROOM = "x" * 4096
"""An argument of the interpreter that all are forked from: its space is overwritten with their own command lines."""
_BEGIN, _END = 48 - 3, 49 - 3
"""The fields of /proc/PID/stat, after the name, with the location of a process's command line (proc(5))."""
READ_WHEN_USED = {
    "COLUMNS", "FAKETIME_TIMESTAMP_FILE", "FAULTY_TOKEN", "FAULTY_TOKEN_MODULE",
    "HOME", "LINES", "OLDPWD", "PATH", "PLANTED_FAULTS", "PWD", "PYTEST_CURRENT_TEST", "PYTEST_DEBUG_TEMPROOT",
    "PYTEST_XDIST_TESTRUNUID", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT",
    "SHLVL", "SOFTHSM2_CONF", "STARTED_AFRESH", "TMPDIR", "_",
}  # fmt: skip
"""In addition to `os.environ`, readline sets COLUMNS and LINES for pytest's children."""
OF_THE_PROGRAM = "FLEET_"
"""Prefix of variables that are read after the imports: a forked process may have its own."""


def lasting(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the interpreter, the loader or a library may have read at start.

    Of ``PYTHONPATH`` that is the first folder, ours: the others are searched on import.
    """
    return {
        name: value.partition(os.pathsep)[0] if name == "PYTHONPATH" else value
        for name, value in environment.items()
        if name not in READ_WHEN_USED and not name.startswith(OF_THE_PROGRAM)
    }


@dataclass(frozen=True, slots=True)
class _Forked:
    """A process; *report* is the descriptor that reports its number and end; *bound*: it ends when that closes."""

    pid: int
    report: int
    bound: bool


class ForkServer:
    """The ordered processes that have not ended, by their pidfd."""

    def __init__(self, orders: socket.socket, listener: socket.socket) -> None:
        self._orders = orders
        self._listener = listener
        self._running: dict[int, _Forked] = {}

    def serve(self) -> None:
        """Report that the imports are done, and the process number, and take orders until the test worker has ended."""
        with contextlib.suppress(BrokenPipeError):  # It has already ended, which the first poll sees.
            self._orders.send(str(os.getpid()).encode())
        while True:
            waiting = select.poll()  # A new one each time: a forked process has none to close.
            for descriptor in (self._orders.fileno(), self._listener.fileno(), *self._running):
                waiting.register(descriptor, select.POLLIN)
            connected = {each.report: pidfd for pidfd, each in self._running.items() if each.bound}
            for descriptor in connected:
                waiting.register(descriptor, 0)  # A hang-up is always reported.
            for descriptor, _ in waiting.poll():
                if descriptor == self._listener.fileno():
                    self._take_stand_in()
                elif descriptor == self._orders.fileno():
                    if not self._take_order():
                        self._kill_all()
                        return
                elif (pidfd := connected.get(descriptor, descriptor)) in self._running:
                    if pidfd != descriptor:
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    self._report(pidfd)

    def _take_order(self) -> bool:
        try:
            content, descriptors, _, _ = socket.recv_fds(self._orders, LARGEST_ORDER, STREAMS + 1)
        except ConnectionResetError:  # It has ended without having read that the imports are done.
            return False
        if not content:
            return False
        *streams, report = descriptors
        self._fork(_Order.read(content), streams, report, bound=False)
        return True

    def _take_stand_in(self) -> None:
        connection, _ = self._listener.accept()
        content, streams, _, _ = socket.recv_fds(connection, LARGEST_ORDER, STREAMS)
        if content and lasting((ordered := _Order.read(content)).environment) == lasting(os.environ):
            self._fork(ordered, streams, connection.detach(), bound=True)
        else:  # Or it was killed meanwhile.
            connection.close()
            for each in streams:
                os.close(each)

    def _fork(self, ordered: _Order, streams: list[int], report: int, *, bound: bool) -> None:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.close(report)
            self._orders.close()
            self._listener.close()
            for pidfd, other in self._running.items():
                os.close(pidfd)
                os.close(other.report)
            _become(ordered, streams)
        for each in streams:
            os.close(each)
        self._running[os.pidfd_open(pid)] = _Forked(pid, report, bound)
        _tell(report, pid)

    def _report(self, pidfd: int) -> None:
        ended = self._running.pop(pidfd)
        _, status = os.waitpid(ended.pid, 0)
        _tell(ended.report, os.waitstatus_to_exitcode(status))
        os.close(ended.report)
        os.close(pidfd)

    def _kill_all(self) -> None:
        for pidfd in list(self._running):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            self._report(pidfd)


def order(folder: str, executable: str, module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> bytes:
    """Return the message with which a test worker, or a stand-in, orders a process."""
    variables = [f"{name}={value}" for name, value in environment.items()]
    fields = [folder, executable, module, str(len(arguments)), *arguments, *variables]
    return b"".join(os.fsencode(field) + b"\0" for field in fields)


@dataclass(frozen=True, slots=True)
class _Order:
    """An order; *executable* becomes ``sys.executable`` of the process."""

    folder: str
    executable: str
    module: str
    arguments: list[str]
    environment: dict[str, str]

    @classmethod
    def read(cls, content: bytes) -> Self:
        folder, executable, module, count, *fields = map(os.fsdecode, content.split(b"\0")[:-1])
        arguments, variables = fields[: int(count)], fields[int(count) :]
        # The creator of the environment may have put in entries that are not variables.
        environment = dict(each.split("=", 1) for each in variables if "=" in each)
        return cls(folder, executable, module, arguments, environment)


def _become(ordered: _Order, streams: list[int]) -> NoReturn:
    """Become the ordered process: continue as the interpreter does after reading its command line."""
    for standard, descriptor in enumerate(streams):
        os.dup2(descriptor, standard)
        os.close(descriptor)
    sys.stdout, sys.stderr = _afresh(sys.stdout), _afresh(sys.stderr)
    os.environ.clear()
    os.environ.update(ordered.environment)
    time.tzset()
    tempfile.tempdir = None
    os.chdir(ordered.folder)
    first, *more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if more:
        behind = len(sys.path) - sys.path[::-1].index(first)
        sys.path[behind:behind] = more
    sys.executable = ordered.executable
    sys.argv = ["-m", *ordered.arguments]
    show(["python", "-m", ordered.module, *ordered.arguments])
    code: object = None
    try:
        runpy.run_module(ordered.module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code
    if code is not None and not (isinstance(code, int) and abs(code) <= _LARGEST_INT):
        raise SystemExit(code)  # Let the interpreter print it, or convert such a number.
    end(code or 0)


def _afresh(stream: TextIO) -> TextIO:
    """Return *stream* anew: the old one remembers of the file that it had before whether it can be sought in."""
    assert isinstance(stream, io.TextIOWrapper)
    file, at_once, lines = io.FileIO(stream.fileno(), "w", closefd=False), stream.write_through, stream.line_buffering
    to = file if at_once else io.BufferedWriter(file)
    return io.TextIOWrapper(to, stream.encoding, stream.errors, line_buffering=lines, write_through=at_once)


def show(words: list[str]) -> None:
    """Make /proc/PID/cmdline show *words*, as far as they fit: the interpreter has read the old content."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as stat:  # noqa: PTH123 - no Path before the program's
        fields = stat.read().rpartition(")")[2].split()
    begin, end = int(fields[_BEGIN]), int(fields[_END])
    line = b"\0".join(os.fsencode(word) for word in words)[: end - begin - 1]
    ctypes.memmove(begin, line.ljust(end - begin, b"\0"), end - begin)


def end(code: int) -> NoReturn:
    """End as the interpreter does, up to the point where it tears down every imported module.

    For that, a forked process would have to copy nearly all of its memory: three quarters of a short command's cost.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # Nothing public does all that the interpreter does
    atexit._run_exitfuncs()
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not getattr(stream, "closed", False):
                stream.flush()
    except (OSError, ValueError):
        sys.exit(code)  # Let the interpreter print its message when a reader is gone.
    os._exit(code)


def _tell(report: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # The waiting side is gone.
        os.write(report, f"{number}\n".encode())
