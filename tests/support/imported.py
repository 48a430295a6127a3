"""The imports of our programs, done once for all workers of a test run; fork servers are forked from them.

    python -m tests.support.imported DESCRIPTOR LISTENER ROOM
    python -m tests.support.imported REQUESTS ROOM

DESCRIPTOR is a socket of the process that started this one, pytest's own, and is closed when that has ended. At
LISTENER a test worker requests the fork server of a program (`asked`), and passes it its orders, its listener and its
standard error. The first request for a program forks a process that imports it; from this one each worker gets a fork
server of its own (`tests.support.fork_server`), which ends with the worker and shares only the imported memory with
others. Four workers would otherwise import for twenty seconds in total, instead of five.

What a library reads at its load, as one that is preloaded, no fork can change: a request may name variables for which
the importer is started afresh, as in the second line, with a socket for its REQUESTS.

Rules
-----
1. One thread, and nothing but imports before a fork: whatever a program creates, it creates in its own process. Only
   the identity of its sources, these imports, is found out before: each start would read a thousand files again.
2. A forked process has no socket of another: the end of either is seen at once.
3. When pytest has ended, however it ended, nothing more is forked, and all end with the last fork server.
4. A failed import ends its process, with the message on the requester's standard error: all requesters see the end.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from tests.support.few_rounds import encrypt_with_few
from tests.support.fork_server import ROOM, ForkServer, show

LARGEST_REQUEST = 16 * 1024
DESCRIPTORS = 3


def asked(program: str, modules: Sequence[str], loaded: Mapping[str, str]) -> bytes:
    """Return a test worker's request for the fork server of *program*, with *modules* imported.

    It is to have the variables *loaded* from its start on.
    """
    return "\0".join((program, json.dumps(loaded, sort_keys=True), *modules)).encode()


class Importers:
    """The processes that each import one program, by what is sent to them."""

    def __init__(self, pytest: socket.socket, listener: socket.socket) -> None:
        self._pytest = pytest
        self._listener = listener
        self._importers: dict[tuple[str, str], socket.socket] = {}

    def serve(self) -> None:
        """Forward the workers' requests until pytest has ended."""
        waiting = select.poll()
        waiting.register(self._pytest, select.POLLIN)
        waiting.register(self._listener, select.POLLIN)
        while self._pytest.fileno() not in dict(waiting.poll()):
            connection, _ = self._listener.accept()
            content, descriptors, _, _ = socket.recv_fds(connection, LARGEST_REQUEST, DESCRIPTORS)
            connection.close()
            if content:
                program, loaded, *_ = content.decode().split("\0", 2)
                importer = self._importer(program, loaded, descriptors)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # It has ended; the requester sees it.
                    socket.send_fds(importer, [content], descriptors)
            for each in descriptors:
                os.close(each)
        for importer in self._importers.values():
            importer.close()
        _wait_for_children()

    def _importer(self, program: str, loaded: str, received: list[int]) -> socket.socket:
        if (program, loaded) not in self._importers:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            if os.fork() == 0:
                for each in (ours, self._pytest, self._listener, *self._importers.values()):
                    each.close()
                for descriptor in received:
                    os.close(descriptor)
                if variables := json.loads(loaded):
                    _start_afresh(theirs, variables)
                _import(theirs)
            theirs.close()
            self._importers[program, loaded] = ours
        return self._importers[program, loaded]


def _start_afresh(requests: socket.socket, variables: Mapping[str, str]) -> NoReturn:
    requests.set_inheritable(True)
    arguments = ["-m", "tests.support.imported", str(requests.fileno()), ROOM]
    os.execve(sys.executable, [sys.executable, *arguments], {**os.environ, **variables})  # noqa: S606 - this one


def _import(requests: socket.socket) -> NoReturn:
    """Import what the first request says, and fork a fork server for each request."""
    while True:
        content, descriptors, _, _ = socket.recv_fds(requests, LARGEST_REQUEST, DESCRIPTORS)
        if not content:
            break
        program, _loaded, *modules = content.decode().split("\0")
        orders, listener, stderr = descriptors
        os.dup2(stderr, 2)
        os.close(stderr)
        show(["python", "-m", "tests.support.imported", program])
        for module in modules:
            importlib.import_module(module)
        encrypt_with_few()
        _read_sources()
        # Imported objects are permanent: a forked process need not collect garbage among them, nor copy their pages for
        # that.
        gc.freeze()
        if os.fork() == 0:
            requests.close()
            show(["python", "-m", "tests.support.fork_server", program])
            ForkServer(socket.socket(fileno=orders), socket.socket(fileno=listener)).serve()
            os._exit(0)
        os.close(orders)
        os.close(listener)
    _wait_for_children()
    os._exit(0)


def _read_sources() -> None:
    """Find out which build this is, if the program says so: rule 1."""
    if (build := sys.modules.get("provisioning.program.build")) is not None:
        build.build_identity()


def _wait_for_children() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def main() -> None:
    *sockets, _room = sys.argv[1:]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # The tests may run under nohup; the programs they start should not.
    if len(sockets) == 1:
        _import(socket.socket(fileno=int(sockets[0])))
    pytest, listener = sockets
    Importers(socket.socket(fileno=int(pytest)), socket.socket(fileno=int(listener))).serve()


if __name__ == "__main__":
    main()
