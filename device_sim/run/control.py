"""The socket through which `fleet-sim ctl` reaches a run: one line in, one answer out.

Theory
------
Each run listens on a Unix socket, named by its process, in a directory that only its user may enter: no port, no
password, no access for others. The run itself parses the words (`order`), so the two programs need agree on nothing
else.

Rules
-----
1. The directory must belong to the user and have mode 0700; otherwise there is no socket, and the run continues without
   one and says why. `tell` does not look for a socket there either: whoever made the directory would receive the orders
   and answer them.
2. A line has at most `LONGEST` bytes. The answer is sent when the order has been carried out.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from device_sim.run.order import InvalidOrder, Order, parse

LONGEST = 1024
_SUFFIX = ".sock"
_STATUS = "status"
_PATIENCE = 2.0
"""For how many seconds one of several runs may take to say which it is."""

Obey = Callable[[Order], Awaitable[str]]
"""Carries out an order and returns the answer. Raises `InvalidOrder` for what cannot be done in this run."""


class Unreachable(Exception):
    """There is no run to talk to, or not the intended one; the text says what to do."""


def _directory() -> Path:
    # Not TMPDIR, which may be too long for the address of a socket.
    return Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp") / f"fleet-sim-{os.getuid()}"  # noqa: S108 - see rule 1


@asynccontextmanager
async def listening(obey: Obey, said: Callable[[str], None]) -> AsyncIterator[Path | None]:
    """Listen for orders while the context is open; yield the socket's path, or None with the reason given to *said*."""
    try:
        path = _socket_path()
        server = await asyncio.start_unix_server(
            lambda reader, writer: _serve(reader, writer, obey), path, limit=LONGEST
        )
    except (OSError, Unreachable) as error:
        said(f"`fleet-sim ctl` cannot reach this run: {error}")
        yield None
        return
    try:
        yield path
    finally:
        server.close()
        path.unlink(missing_ok=True)


def _socket_path() -> Path:
    directory = _directory()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_ours(directory)
    for path in directory.glob(f"*{_SUFFIX}"):
        if not (Path(f"/proc/{path.stem}").exists() or _listens(path)):  # It was killed.
            path.unlink(missing_ok=True)
    return directory / f"{os.getpid()}{_SUFFIX}"


def _check_ours(directory: Path) -> None:
    """Raise `Unreachable` if others may have put something into *directory*; `FileNotFoundError` if it is absent."""
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise Unreachable(f"{directory} is not a directory of yours that only you may enter: remove it")


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, obey: Obey) -> None:
    with contextlib.suppress(ConnectionError):
        try:
            line = await reader.readline()
            answer = await _answer(line.decode(errors="replace"), obey)
        except ValueError:
            answer = {"done": False, "text": f"an order has at most {LONGEST} bytes"}
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
    writer.close()


async def _answer(line: str, obey: Obey) -> dict[str, object]:
    try:
        return {"done": True, "text": await obey(parse(line))}
    except InvalidOrder as error:
        return {"done": False, "text": str(error)}


def runs() -> list[Path]:
    """Return the sockets of the runs in progress. Raises `Unreachable`."""
    directory = _directory()
    try:
        _check_ours(directory)
    except FileNotFoundError:
        return []
    found = sorted(directory.glob(f"*{_SUFFIX}"), key=lambda path: (len(path.stem), path.stem))
    return [path for path in found if _listens(path)]


def _listens(path: Path) -> bool:
    """Whether somebody listens at *path*: a run that was killed has left it, and others have its process number."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.setblocking(False)
        return asking.connect_ex(str(path)) in {0, errno.EAGAIN}  # Or its queue is full.


async def tell(words: str, run: int | None) -> tuple[bool, str]:
    """Give an order to the run with process *run*, or to the only one; return whether it was done, and the answer.

    Of several, all say their status; whom another order is for is not guessed. Raises `Unreachable`, also if the run
    ends before answering.
    """
    paths = [path for path in runs() if run is None or path.stem == str(run)]
    if not paths:
        raise Unreachable(
            "no run is under way here, of this user: start one with `fleet-sim run`"
            if run is None
            else f"no run has process {run}"
        )
    if len(paths) > 1:
        told = "\n".join(await asyncio.gather(*map(_introduced, paths)))
        if words.strip() == _STATUS:
            return True, told
        raise Unreachable(f"several runs are under way: say which with --run\n{told}")
    return await _told(paths[0], words)


async def _introduced(path: Path) -> str:
    """Return which run listens at *path*, and what it is doing."""
    try:
        async with asyncio.timeout(_PATIENCE):
            _, text = await _told(path, _STATUS)
    except (Unreachable, TimeoutError):
        text = "does not answer"
    return f"--run {path.stem}: {text}"


async def _told(path: Path, words: str) -> tuple[bool, str]:
    try:
        reader, writer = await asyncio.open_unix_connection(path)
    except OSError as error:
        raise Unreachable(f"{path} does not answer: {error.strerror}") from error
    try:
        writer.write(words.encode() + b"\n")
        await writer.drain()
        line = await reader.readline()
    except ConnectionError:
        line = b""
    finally:
        writer.close()
    if not line:
        if words.strip() == "stop":
            return True, "the run has ended"
        raise Unreachable("the run has ended before it had done that")
    answer = json.loads(line)
    return bool(answer["done"]), str(answer["text"])
