"""The tests are collected once for all workers of a run: they are forked from the process that has collected them.

    one_collection.prepare(config, specs, {"imported": …})   # before pytest-xdist sets up its workers

pytest-xdist starts an interpreter for each worker, which imports and collects all tests: ten seconds of a core each.
Here one process does so (`tests.support.forked_worker`), and the workers begin where it has ended. What they and the
run tell each other is as ever; only how a worker comes into being differs.

Rules
-----
1. The process is started when the first worker is: the imports that tests fork their programs from go on beside it.
2. A worker that comes in place of one that has crashed is started as ever. So are all, which is said, if there is
   nothing to fork them from: they then tell what is wrong.
3. The other end of a pipe is nobody else's, so that each side sees the end of the other at once.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

import execnet
import pytest
from execnet import gateway_io
from execnet.gateway_base import Popen2IO
from xdist.plugin import _sys_path  # What its own workers are given

REPOSITORY: Final = Path(__file__).parents[2]


def prepare(config: pytest.Config, specs: Sequence[execnet.XSpec], for_all: Mapping[str, object]) -> None:
    """Have the workers forked that *specs* tell of, if they are plain ones; each ``workerinput`` has *for_all*."""
    if not all(spec.popen and not (spec.python or spec.chdir or spec.nice or spec.env or spec.via) for spec in specs):
        return
    order = {
        "args": [str(each) for each in config.invocation_params.args],
        "folder": str(Path.cwd()),
        "path": _sys_path,
        "input": {
            **for_all,
            "is_for_all": True,  # Not so in a worker.
            "workerid": "all",
            "workercount": len(specs),
            "testrunuid": config.getoption("testrunuid") or "",
            "mainargv": sys.argv,
        },
    }
    waiting: list[_Forked] = []
    original = gateway_io.create_io

    def create_io(spec: execnet.XSpec, execmodel: Any) -> Any:
        if order:
            waiting.extend(_start(order, len(specs), execmodel))
            order.clear()
        if waiting:
            if waiting[0].begins():
                return waiting.pop(0)
            print("no worker could be forked: each collects all tests", file=sys.stderr)  # noqa: T201 - it says how
            for each in waiting:
                each.end()
            waiting.clear()
        return original(spec, execmodel)

    gateway_io.create_io = create_io


class _Forked(Popen2IO):
    """What execnet reads from a worker and writes to it, as for one that it has started."""

    def __init__(self, writing: IO[bytes], reading: IO[bytes], execmodel: Any) -> None:
        super().__init__(writing, reading, execmodel)
        self._process = -1

    def begins(self) -> bool:
        """Wait until the worker has been forked; return False if it never will be."""
        said = self.infile.readline()
        if not said:
            return False
        self._process = os.pidfd_open(int(said))
        return True

    def wait(self) -> int | None:
        """Wait until it has ended."""
        select.select([self._process], [], [])
        return None

    def end(self) -> None:
        """End it, whether it has begun or not."""
        if self._process != -1:
            self.kill()
            return
        self.close_read()
        self.close_write()

    def kill(self) -> None:
        """End it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._process, signal.SIGKILL)


def _start(order: Mapping[str, object], workers: int, execmodel: Any) -> list[_Forked]:
    """Start the process that collects; return what each of its workers will be reached by."""
    ours: list[_Forked] = []
    theirs: list[tuple[int, int]] = []
    for _ in range(workers):
        their_reading, our_writing = os.pipe()
        our_reading, their_writing = os.pipe()
        theirs.append((their_reading, their_writing))
        ours.append(_Forked(os.fdopen(our_writing, "wb"), os.fdopen(our_reading, "rb"), execmodel))
    descriptors = [descriptor for pair in theirs for descriptor in pair]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.forked_worker"],
        stdin=subprocess.PIPE, cwd=REPOSITORY, pass_fds=descriptors,
    )  # fmt: skip
    for descriptor in descriptors:
        os.close(descriptor)
    assert process.stdin is not None
    process.stdin.write(json.dumps({**order, "pipes": theirs}).encode())
    process.stdin.close()
    atexit.register(_ended, process, tuple(ours))
    return ours


def _ended(process: subprocess.Popen[bytes], workers: Sequence[_Forked]) -> None:
    """Wait for the process that collects, which ends with its workers.

    These have ended by now, unless the run was interrupted before it began, or could not begin: then they wait for it.
    """
    for each in workers:
        each.end()
    process.wait()
