"""A program of ours with its imports done, which makes a process of it by forking: for `tests.support.programs`.

    python -m tests.support.fork_server PROGRAM DESCRIPTOR MODULE...

PROGRAM is what ``python -m`` would run, DESCRIPTOR the socket that the orders come from, MODULE what is imported before
the first of them. Importing is most of what a start costs, and hundreds of tests start a process; all that comes after
it is the program's own: `runpy` runs ``PROGRAM/__main__.py`` as ``python -m`` does, with the arguments, environment,
folder and standard streams of the order.

Rules
-----
1. One thread, no event loop, and nothing of the program is called before the fork: what the program makes, it makes in
   its own process.
2. A forked process has the descriptors that one started afresh has: 0, 1 and 2.
3. When nobody can give orders any more, the processes that are left are killed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
import time
from typing import NoReturn

LARGEST_ORDER = 128 * 1024
"""Bytes: arguments and environment."""
STREAMS = 3


class ForkServer:
    """The processes that were ordered and have not ended: pidfd → where to write how they end, and their number."""

    def __init__(self, program: str, orders: socket.socket) -> None:
        self._program = program
        self._orders = orders
        self._running: dict[int, tuple[int, int]] = {}

    def serve(self) -> None:
        """Take orders until the other side closes."""
        while True:
            waiting = select.poll()  # Of its own each time: a forked process has none to close.
            for descriptor in (self._orders.fileno(), *self._running):
                waiting.register(descriptor, select.POLLIN)
            for descriptor, _ in waiting.poll():
                if descriptor in self._running:
                    self._report(descriptor)
                elif not self._take_order():
                    self._kill_all()
                    return

    def _take_order(self) -> bool:
        content, descriptors, _, _ = socket.recv_fds(self._orders, LARGEST_ORDER, STREAMS + 1)
        if not content:
            return False
        *streams, report = descriptors
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.close(report)
            self._orders.close()
            for pidfd, (its_report, _) in self._running.items():
                os.close(pidfd)
                os.close(its_report)
            self._become(json.loads(content), streams)
        for each in streams:
            os.close(each)
        self._running[os.pidfd_open(pid)] = (report, pid)
        _tell(report, pid)
        return True

    def _become(self, order: dict[str, object], streams: list[int]) -> NoReturn:
        """Be the process that was ordered: go on as the interpreter does once it has read its command line."""
        for standard, descriptor in enumerate(streams):
            os.dup2(descriptor, standard)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(order["environment"])  # type: ignore[call-overload]
        time.tzset()
        os.chdir(str(order["folder"]))
        sys.argv = ["-m", *order["arguments"]]  # type: ignore[misc]
        runpy.run_module(self._program, run_name="__main__", alter_sys=True)
        sys.exit(0)

    def _report(self, pidfd: int) -> None:
        report, pid = self._running.pop(pidfd)
        _, status = os.waitpid(pid, 0)
        _tell(report, os.waitstatus_to_exitcode(status))
        os.close(report)
        os.close(pidfd)

    def _kill_all(self) -> None:
        for pidfd in list(self._running):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            self._report(pidfd)


def _tell(report: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # Nobody waits for it any more.
        os.write(report, f"{number}\n".encode())


def main() -> None:
    program, descriptor, *modules = sys.argv[1:]
    for module in modules:
        importlib.import_module(module)
    # What is imported lasts: a forked process need not look through it for garbage, nor copy its pages by doing so.
    gc.freeze()
    ForkServer(program, socket.socket(fileno=int(descriptor))).serve()


if __name__ == "__main__":
    main()
