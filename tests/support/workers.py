"""The workers of a running service: their processes, which one serves a connection, and when one has ended.

pids = workers_of(service.pid)
worker_of(connection, pids)             # of a socket connected to the service
await_end(pids)
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

PATIENCE = 60.0
_ESTABLISHED = "01"


def workers_of(supervisor: int) -> list[int]:
    """Return the process numbers of a supervisor's workers, in the order of their starts."""
    return [int(pid) for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()]


def worker_of(connection: socket.socket, pids: Sequence[int]) -> int:
    """Return which of *pids* has the other side of *connection*, over IPv4; it must have answered on it already."""
    here, there = connection.getsockname()[1], connection.getpeername()[1]
    inode = next(
        fields[9]
        for fields in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
        if fields[3] == _ESTABLISHED and _port(fields[1]) == there and _port(fields[2]) == here
    )
    return next(pid for pid in pids if f"socket:[{inode}]" in _files(pid))


class Connected(Protocol):
    """A connection that has received an answer."""

    @property
    def socket(self) -> socket.socket:
        """Its socket."""

    def close(self) -> None:
        """Close it."""


ConnectedT = TypeVar("ConnectedT", bound=Connected)


@contextmanager
def one_to_each(pids: Sequence[int], connect: Callable[[], ConnectedT]) -> Iterator[list[ConnectedT]]:
    """Yield a connection to each of *pids*, in their order; *connect* makes one."""
    found: dict[int, ConnectedT] = {}
    with ExitStack() as stack:
        for _ in range(64):  # The kernel spreads them: one of two getting none of 64 is not chance.
            made = stack.enter_context(closing(connect()))
            found.setdefault(worker_of(made.socket, pids), made)
            if len(found) == len(pids):
                break
        yield [found[pid] for pid in pids]


@contextmanager
def ends_of(pids: Sequence[int]) -> Iterator[Callable[[], None]]:
    """Yield a function that waits until all of *pids*, which run now, have ended."""
    descriptors = [os.pidfd_open(pid) for pid in pids]

    def wait() -> None:
        for pid, descriptor in zip(pids, descriptors, strict=True):
            waiting = select.poll()
            waiting.register(descriptor, select.POLLIN)
            assert waiting.poll(PATIENCE * 1000), f"process {pid} has not ended"

    try:
        yield wait
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _port(address: str) -> int:
    return int(address.rpartition(":")[2], 16)


def _files(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # Closed meanwhile.
            found.add(str(entry.readlink()))
    return found
