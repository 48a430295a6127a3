"""A third-party server, started as a process in its own directory.

Rules
-----
1. It listens on loopback only and needs no privilege. Its Debian package's own service is neither used nor touched.
2. It runs in its own session, so that Ctrl-C reaches only us; leaving the context ends it and its children.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import random
import re
import shutil
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from device_sim.stage.bound import bound
from device_sim.stage.child_log import opened_log
from device_sim.stage.left_behind import end_left_behind
from device_sim.stage.processes import ChildFailed

LOOPBACK = "127.0.0.1"
_PORTS = range(20_000, 32_768)
"""Below those of outgoing connections: Linux's default net.ipv4.ip_local_port_range."""
_HELD_AT_MOST = 64
"""By the time that so many more were asked for, a server listens at the port, or nobody wants it."""
_START = 60.0
_GRACE = 10.0
_POLL = 0.05
_TAIL = 1500
_held: deque[int] = deque()


class ServerMissing(Exception):
    """The program is not installed; the text says what to install."""


def program(name: str, package: str, *, beside: Sequence[str] = ()) -> str:
    """Return the path of the program *name*; raise `ServerMissing` naming the Debian *package*."""
    found = shutil.which(name, path=":".join([*beside, "/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"]))
    if found is None:
        raise ServerMissing(f"{name} is not installed: apt-get install {package}")
    return found


def free_port(host: str = LOOPBACK) -> int:
    """Return a free port of *host*, for a server that cannot choose its own; nobody else who asks here is given it.

    Raises `OSError` if this machine has no such address.

    It is none of those that the kernel gives to whoever asks for any: a connection could have it before the server.
    It stays bound, so that it is taken for the next who asks, in any process. Since it does not listen and says
    SO_REUSEADDR afterwards, a server that says so too, as each does here, can have it all the same (socket(7)).
    """
    while True:
        port = random.choice(_PORTS)  # noqa: S311 - nobody can profit from guessing it
        held = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            held.bind((host, port))
        except OSError as error:
            held.close()
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if len(_held) == _HELD_AT_MOST:
            os.close(_held.popleft())
        _held.append(held.detach())  # Until this process ends: a socket would be missed as one that nobody has closed.
        return port


@asynccontextmanager
async def serving(
    name: str,
    arguments: Sequence[str],
    *,
    log: Path,
    ready: str,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run *arguments* until the context is left; it is ready when its output, kept in *log*, contains *ready*."""
    with opened_log(log) as output:
        process = await asyncio.create_subprocess_exec(
            *bound(list(arguments)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        await _until_ready(name, process, log, ready)
        yield process
    finally:
        await stop(process)


async def _until_ready(name: str, process: asyncio.subprocess.Process, log: Path, ready: str) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_START):
            while process.returncode is None:
                if ready in _said(log):
                    return
                await asyncio.sleep(_POLL)
    raise ChildFailed(f"{name} did not start:\n{_said(log)[-_TAIL:]}")


def version_in(log: Path, before: str) -> str:
    """Return the version that a server logged in *log* after the word *before*; empty if it has not."""
    found = re.search(rf"{re.escape(before)}\s+v?(\d[\w.-]*)", _said(log))
    return found[1] if found else ""


def _said(log: Path) -> str:
    return log.read_text(errors="replace")


async def stop(process: asyncio.subprocess.Process, grace: float = _GRACE) -> None:
    """End *process*, the leader of its own session: by SIGTERM, after *grace* seconds by force, with all it left."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    try:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await process.wait()
    finally:
        # The session is ours alone: everything it started and left behind ends with it.
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        end_left_behind(process.pid)
