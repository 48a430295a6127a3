"""The load on a CA: prepared requests, over kept connections or a new one each, and the cost of each.

This process sends requests to a CA over TLS; OCSP responders, faster than Python can ask, are loaded by `wrk` (Debian).

Rules
-----
1. A request without the expected answer fails the run.
2. The first request of each kind is answered before counting begins; kept connections are open by then.
3. The server's CPU time is read just before and just after; the load generator's own is in the result, so that it shows
   if the load was the bottleneck.
4. Handshakes are compared where both CAs exchange keys alike (`by_x25519`): OpenSSL since 3.5 also offers, and takes, a
   hybrid of X25519 and ML-KEM, which costs more and which a program built for an older Go does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from kept_connections import WronglyAnswered

CpuClock = Callable[[], float]
"""Seconds of CPU time that the server has used so far."""

_WRK_REPORT = """
wrk.method = "POST"
wrk.body = io.open("{body}", "rb"):read("*a")
wrk.headers["Content-Type"] = "{media_type}"
done = function(summary, latency, requests)
  local wrong = summary.errors.connect + summary.errors.read + summary.errors.write + summary.errors.timeout
  io.write(string.format('\\n{{"requests": %d, "wrong": %d, "seconds": %f, "p50": %f, "p99": %f}}\\n',
    summary.requests, wrong + summary.errors.status, summary.duration / 1e6,
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6))
end
"""
_WRK_ENOUGH = """
local left = {most}
response = function()
  left = left - 1
  if left == 0 then wrk.thread:stop() end
end
"""


class LoadMissing(RuntimeError):
    """A load program is not installed; the text says how to install it."""


@dataclass(frozen=True, slots=True)
class Result:
    """Many requests of one kind; times in seconds."""

    requests: int
    seconds: float
    server_cpu: float
    load_cpu: float
    p50: float
    p99: float

    @property
    def a_second(self) -> float:
        """The rate on this machine, shared with the load."""
        return self.requests / self.seconds

    @property
    def cpu_microseconds(self) -> float:
        """The server's cost per request."""
        return self.server_cpu / self.requests * 1e6

    @property
    def load_busy(self) -> float:
        """The share of a core that the load used."""
        return self.load_cpu / self.seconds


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and what is needed to connect."""

    url: str
    context: ssl.SSLContext | None = None


def by_x25519(context: ssl.SSLContext) -> ssl.SSLContext:
    """Have the client's *context* offer X25519 alone to exchange keys; return it."""
    context.set_ecdh_curve("X25519")
    return context


class Connection:
    """One HTTP connection, used for successive requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def open(cls, target: Target) -> Connection:
        """Connect, with a full handshake."""
        address = urlsplit(target.url)
        return cls(*await asyncio.open_connection(address.hostname, address.port, ssl=target.context))

    async def send(self, request: bytes, expected: int) -> bytes:
        """Send a request and return the answer's body; raise `WronglyAnswered` on another status than *expected*."""
        self._writer.write(request)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        if b"transfer-encoding: chunked" in head:
            body = await self._chunks()
        else:
            length = next(int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:"))
            body = await self._reader.readexactly(length)
        if int(head[9:12]) != expected:
            raise WronglyAnswered(f"{head[:12]!r} instead of {expected}: {body[:200]!r}")
        return body

    async def _chunks(self) -> bytes:
        body = b""
        while size := int(await self._reader.readline(), 16):
            body += (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readline()
        return body

    async def close(self) -> None:
        """Close it."""
        self._writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # It does not matter which side closes first.
            await self._writer.wait_closed()


@asynccontextmanager
async def kept(target: Target, number: int) -> AsyncIterator[list[Connection]]:
    """Open *number* connections for the block."""
    opened = [await Connection.open(target) for _ in range(number)]
    try:
        yield opened
    finally:
        for each in opened:
            await each.close()


async def over_kept(
    target: Target, connections: int, requests: Sequence[bytes], expected: int, cpu: CpuClock
) -> tuple[Result, list[bytes]]:
    """Send *requests* over kept connections, one in flight on each; the first one is not counted.

    Also return the bodies of the answers to the others.
    """
    async with kept(target, connections) as opened:
        await opened[0].send(requests[0], expected)

        async def send(place: int, request: bytes) -> bytes:
            return await opened[place].send(request, expected)

        return await _measured(connections, requests[1:], send, cpu)


async def over_new(
    target: Target, workers: int, requests: Sequence[bytes], expected: int, cpu: CpuClock
) -> tuple[Result, list[bytes]]:
    """Send each of *requests* over a new connection with a full handshake; the first one is not counted."""

    async def send(_place: int, request: bytes) -> bytes:
        connection = await Connection.open(target)
        body = await connection.send(request, expected)
        await connection.close()
        return body

    await send(0, requests[0])
    return await _measured(workers, requests[1:], send, cpu)


async def _measured(
    workers: int,
    requests: Sequence[bytes],
    send: Callable[[int, bytes], Coroutine[None, None, bytes]],
    cpu: CpuClock,
) -> tuple[Result, list[bytes]]:
    waiting = list(reversed(requests))
    latencies: list[float] = []
    answers: list[bytes] = []

    async def work(place: int) -> None:
        while waiting:
            each = waiting.pop()
            begun = time.perf_counter()
            answers.append(await send(place, each))
            latencies.append(time.perf_counter() - begun)

    server, load, begun = cpu(), time.process_time(), time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for place in range(workers):
            tasks.create_task(work(place))
    seconds = time.perf_counter() - begun
    ascending = sorted(latencies)
    server, load = cpu() - server, time.process_time() - load
    return Result(len(latencies), seconds, server, load, _quantile(ascending, 0.5), _quantile(ascending, 0.99)), answers


def _quantile(ascending: Sequence[float], share: float) -> float:
    return ascending[max(0, math.ceil(len(ascending) * share) - 1)]


def wrk() -> str:
    """Return the path of wrk; raise `LoadMissing`."""
    found = shutil.which("wrk")
    if found is None:
        raise LoadMissing("wrk is not installed. Remedy, as root: apt-get install wrk")
    return found


async def same_again(
    url: str,
    body: bytes,
    media_type: str,
    *,
    connections: int,
    seconds: float,
    most: int | None,
    cpu: CpuClock,
    folder: Path,
) -> Result:
    """Send the same POST for *seconds* over kept connections, from one C thread; at most *most* times if given."""
    content, script = folder / "wrk.body", folder / "wrk.lua"
    content.write_bytes(body)
    enough = "" if most is None else _WRK_ENOUGH.format(most=most)
    script.write_text(_WRK_REPORT.format(body=content, media_type=media_type) + enough)
    arguments = [wrk(), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", os.fspath(script), url]
    server = cpu()
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    before = _children_cpu()
    output, _ = await process.communicate()
    used = cpu() - server
    try:
        said = json.loads(b"{" + output.rpartition(b"\n{")[2])
    except ValueError:
        raise WronglyAnswered(f"wrk failed: {output[-300:]!r}") from None
    if said["wrong"] or not said["requests"]:
        raise WronglyAnswered(f"{said['wrong']} of {said['requests']} requests to {url} were not answered with 200")
    return Result(said["requests"], said["seconds"], used, _children_cpu() - before, said["p50"], said["p99"])


def _children_cpu() -> float:
    times = os.times()
    return times.children_user + times.children_system
