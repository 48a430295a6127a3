"""A process that collects the tests, and forks a run's workers when it has: for `tests.support.one_collection`.

    python -m tests.support.forked_worker < ORDER

What a worker of pytest-xdist does before it knows which one it is, this process does for all: it reads the
configuration, imports the tests and makes them. Then it forks a worker for each pair of pipes, and waits for their
ends. A worker goes on as pytest-xdist's own (`xdist.remote`), with its session as collected; what went wrong in that,
each tells.

Rules
-----
1. One thread, and nothing that lasts but what is imported and collected, until all are forked: a process, a socket or a
   folder that one begins here would be everybody's.
2. What a worker writes to, its captured output, its folder and the number in its environment, is its own.
3. The workers begin when all are forked: none shares a pipe of another.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Final, NoReturn

import pytest
from _pytest.config import _prepareconfig
from _pytest.tmpdir import TempPathFactory
from execnet.gateway_base import Popen2IO, WorkerGateway, get_execmodel, loads_internal

from tests.support.fork_server import end

_PATIENCE: Final = (5, 10)
"""Seconds that a test is given when the run has ended, and again after it was interrupted: execnet's."""


class _Gateway(WorkerGateway):
    """A worker's connection, which keeps what it is asked for the main thread; execnet would execute it by itself."""

    def __init__(self, io: Any, name: str) -> None:
        super().__init__(io=io, id=name, _startcount=2)
        self._executetask_complete = None
        self._asked: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
        self.done = threading.Event()
        self._initreceive()

    def channel(self, module: ModuleType) -> Any:
        """Return the channel on which *module* is asked for; until then, execute what else is."""
        while True:
            channel, task = self._asked.get()
            if task[1] == module.__file__:
                return channel
            self.executetask((channel, task))

    def _local_schedulexec(self, channel: Any, sourcetask: bytes) -> None:
        self._asked.put((channel, loads_internal(sourcetask)))

    def _terminate_execution(self) -> None:
        before, after = _PATIENCE
        if self.done.wait(before):
            return
        os.kill(os.getpid(), signal.SIGINT)
        if not self.done.wait(after):
            os._exit(1)


class Forking:
    """Forks the workers when all is collected; in each of them, what pytest-xdist's own part of a worker does."""

    def __init__(self, remote: ModuleType, pipes: list[tuple[int, int]], capturing: Any) -> None:
        """*remote* is pytest-xdist's module of that name, *capturing* the plugin of pytest that does."""
        self._remote = remote
        self._capturing = capturing
        self._pipes = pipes
        self._reports: list[pytest.CollectReport] = []
        self.gateway: _Gateway | None = None

    @pytest.hookimpl
    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep what each worker has to tell. Of warnings, pytest tells whoever is registered later, too."""
        self._reports.append(report)

    @pytest.hookimpl
    def pytest_internalerror(self, excrepr: object) -> None:
        """Say why nothing is forked: what pytest says goes nowhere here. A worker tells the run."""
        if self.gateway is None:
            with self._capturing.global_and_fixture_disabled():
                print(excrepr, file=sys.stderr)  # noqa: T201 - it says how

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Fork the workers. Returns in a worker, when its last test has ended."""
        config = session.config
        number = self._fork()
        reading, writing = self._pipes[number]
        io = Popen2IO(os.fdopen(writing, "wb"), os.fdopen(reading, "rb"), get_execmodel("main_thread_only"))
        _begin(io)
        self.gateway = _Gateway(io, f"forked-{number}-worker")
        channel = self.gateway.channel(self._remote)
        worker_input, _, options, _ = channel.receive()
        config.workerinput.update(worker_input, is_for_all=False)  # type: ignore[attr-defined]
        os.environ["PYTEST_XDIST_WORKER"] = worker_input["workerid"]
        os.environ["PYTEST_XDIST_TESTRUNUID"] = worker_input["testrunuid"]
        config.option.basetemp = options["basetemp"]
        config._tmp_path_factory = TempPathFactory.from_config(config, _ispytest=True)  # type: ignore[attr-defined]
        return self._work(self._remote.WorkerInteractor(config, channel), session)

    def _fork(self) -> int:
        """Return, in each worker, its number; the process that has collected ends with the last of them."""
        threads = len(list(Path("/proc/self/task").iterdir()))
        assert threads == 1, f"{threads} threads run already, of which Python knows {threading.enumerate()}"
        self._capturing.stop_global_capturing()
        sys.stdout.flush()
        sys.stderr.flush()
        workers = []
        for number in range(len(self._pipes)):
            if (pid := os.fork()) == 0:
                _close(each for other, each in enumerate(self._pipes) if other != number)
                self._capturing.start_global_capturing()
                return number
            workers.append(pid)
        _close(self._pipes)
        return _end_with(workers)

    def _work(self, interactor: Any, session: pytest.Session) -> bool:
        self._remote.interactor = interactor  # type: ignore[attr-defined]  # Where it expects itself.
        interactor.pytest_sessionstart(session)
        interactor.pytest_collection()
        for report in self._reports:
            interactor.pytest_collectreport(report)
        interactor.pytest_collection_modifyitems(session.config, session.items)
        interactor.pytest_collection_finish(session)
        return bool(interactor.pytest_runtestloop(session))


def _begin(io: Popen2IO) -> None:
    """Tell the run which process this is, and wait for its beginning; end, if it has ended before that."""
    try:
        io.write(b"%d\n" % os.getpid())
        if io.infile.readline():  # How it would begin.
            io.write(b"1")
            return
    except BrokenPipeError:
        pass
    end(0)


def _close(pipes: Iterable[tuple[int, int]]) -> None:
    for descriptor in itertools.chain.from_iterable(pipes):
        os.close(descriptor)


def _end_with(workers: Iterable[int]) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # They are sent it, too.
    for pid in workers:
        os.waitpid(pid, 0)
    end(0)


def main() -> None:
    order = json.load(sys.stdin)
    os.chdir(order["folder"])
    sys.path[:] = order["path"]
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):  # As execnet does: what a worker writes outside of its tests is nobody's.
        os.dup2(nothing, standard)
    os.close(nothing)
    os.environ["PYTEST_XDIST_WORKER_COUNT"] = str(order["input"]["workercount"])
    config = _prepareconfig(order["args"])
    from xdist import remote  # As a plugin, by now: pytest has its assertions rewritten.

    remote.setup_config(config, None)
    config._parser.prog = Path(order["input"]["mainargv"][0]).name
    config.workerinput = order["input"]  # type: ignore[attr-defined]
    config.workeroutput = {}  # type: ignore[attr-defined]
    pipes = [(reading, writing) for reading, writing in order["pipes"]]
    for descriptor in itertools.chain.from_iterable(pipes):
        os.set_inheritable(descriptor, False)
    forking = Forking(remote, pipes, config.pluginmanager.getplugin("capturemanager"))
    config.pluginmanager.register(forking)
    config.hook.pytest_cmdline_main(config=config)
    if forking.gateway is not None:
        forking.gateway.done.set()
        forking.gateway.join()
        end(0)


if __name__ == "__main__":
    main()
