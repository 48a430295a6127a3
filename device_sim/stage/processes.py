"""Child processes of the demo: started, awaited until ready, watched, and always gone at the end.

Rules
-----
1. A child is ready when it has printed its ready line; a deadline, or its death before that, is an error that includes
   the end of its log, with the whole of a traceback: what happens once in thousands of starts has to explain itself.
2. A child runs in its own session: Ctrl-C reaches only us, and we stop the children in order.
3. Leaving the context stops the child: SIGTERM, a grace time, SIGKILL. A second interruption skips the grace time.
4. A child that ends while it is needed is an error at once (`watch`), not discovered later.
5. A child ends when we do, however we end: a server or command is `bound`, a dialogue partner sees the end of its
   input.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from device_sim.stage.bound import bound
from device_sim.stage.child_log import opened_log

_GRACE = 8.0
_TAIL_LINES = 15
_TRACEBACK_LINES = 400
_TAIL_BYTES = 64 * 1024
_TRACEBACK = "Traceback (most recent call last):"


class ChildFailed(Exception):
    """A child process did not start, was not ready in time, or ended too soon; the text has the end of its log."""


class Child:
    """A running child process and its parsed ready line. Created by `running`."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.ready: Sequence[str] = ()
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        """The process identifier."""
        return self._process.pid

    async def watch(self) -> None:
        """Never return; raise `ChildFailed` when the child ends."""
        status = await self._process.wait()
        raise self._failed(f"ended with status {status}")

    async def _until_ready(self, line_start: str, deadline: float) -> None:
        output = self._process.stdout
        if output is None:
            raise RuntimeError("the child was started without a pipe for its output")
        try:
            async with asyncio.timeout(deadline):
                async for line in output:
                    text = line.decode(errors="replace").strip()
                    if text.startswith(line_start):
                        self.ready = text.removeprefix(line_start).split()
                        return
        except TimeoutError:
            raise self._failed(f"was not ready within {deadline:g} s") from None
        raise self._failed(f"ended with status {await self._process.wait()} before it was ready")

    def say(self, line: bytes) -> None:
        """Write to its standard input."""
        if self._process.stdin is None:
            raise RuntimeError(f"{self.name} was not started to be talked to")
        self._process.stdin.write(line)

    async def end(self, deadline: float) -> None:
        """Close its standard input and wait for its end; after *deadline* seconds `talking` deals with it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline):
                await self._process.wait()

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield the lines of its standard output, until it is closed."""
        if self._process.stdout is None:
            raise RuntimeError("the child was started without a pipe for its output")
        async for line in self._process.stdout:
            yield line

    async def _drain(self) -> None:
        """Keep reading after the ready line, so that the child never blocks on a full pipe."""
        output = self._process.stdout
        while output is not None and await output.read(4096):
            pass

    async def _stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            async with asyncio.timeout(_GRACE):
                await self._process.wait()
        except TimeoutError:
            pass  # Its time is over; now it is killed.
        finally:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()

    def _failed(self, what: str) -> ChildFailed:
        return ChildFailed(f"{self.name} {what}{_tail(self._log)}")


@asynccontextmanager
async def running(
    name: str, arguments: Sequence[str], *, log: Path, ready: str, deadline: float
) -> AsyncIterator[Child]:
    """Run ``python -m`` *arguments* until the context is left; its ready line begins with *ready*."""
    with opened_log(log) as errors:
        process = await asyncio.create_subprocess_exec(
            *bound([sys.executable, "-m", *arguments]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
    child = Child(name, process, log)
    drain: asyncio.Task[None] | None = None
    try:
        await child._until_ready(ready, deadline)  # noqa: SLF001 - the two are one thing
        drain = asyncio.create_task(child._drain(), name=f"drain {name}")  # noqa: SLF001
        yield child
    finally:
        try:
            await child._stop()  # noqa: SLF001
        finally:
            if drain is not None:
                await drain


@asynccontextmanager
async def talking(name: str, arguments: Sequence[str], *, log: Path, longest_line: int) -> AsyncIterator[Child]:
    """Run ``python -m`` *arguments* until the context is left, and talk to it (`Child.say`, `Child.lines`)."""
    with opened_log(log) as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
            limit=longest_line,
        )
    child = Child(name, process, log)
    try:
        yield child
    finally:
        await child._stop()  # noqa: SLF001 - the two are one thing


async def run_to_end(name: str, arguments: Sequence[str], *, log: Path, deadline: float) -> None:
    """Run ``python -m`` *arguments* and wait for its end; raise `ChildFailed` unless it succeeds."""
    with opened_log(log) as output:
        process = await asyncio.create_subprocess_exec(
            *bound([sys.executable, "-m", *arguments]),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(deadline):
            status = await process.wait()
    except TimeoutError:
        raise ChildFailed(f"{name} did not end within {deadline:g} s{_tail(log)}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status != 0:
        raise ChildFailed(f"{name} ended with status {status}{_tail(log)}")


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = _last_words(file.read(_TAIL_BYTES).decode(errors="replace").splitlines())
    except OSError as error:
        return f"; its log {log} cannot be read: {error.strerror}"
    return ":\n" + "\n".join(f"    {line}" for line in lines) if lines else "; it said nothing"


def _last_words(lines: list[str]) -> list[str]:
    """Return the last of *lines*; with a traceback among them all from there: it begins with the cause of the rest."""
    last = lines[-_TRACEBACK_LINES:]
    begins = next((number for number, line in enumerate(last) if line.endswith(_TRACEBACK)), len(last))
    return last[min(begins, max(0, len(last) - _TAIL_LINES)) :]
