"""Has certificate signing requests verified by a second process, on another core, while many devices enrol.

Theory
------
A process of the service computes on one core, and a fifth of what a certificate takes there is to verify its request.
So while many come, that is another process's (`provisioning.service.verifier_process`). It is started when there is
enough for it, ends when there was nothing for a while, and gets all that comes in one turn of the event loop at once::

    event loop   TLS, HTTP ─ requests ┐        ┌─ works, signatures, answers
                                      └────────┘
                 2 octets: the length, a request in DER  ►
                                                         ◄  32 octets: its SHA-256, or zeros

It gets requests, which anybody may send, and nothing else: no key, no settings, none of the environment's secrets.

Rules
-----
1. Only a yes that names this very request counts. Without one, for whatever reason, the request is verified here by
   the same code: so all that is refused is refused here, in the same words.
2. At most `_MOST` wait, each no longer than `_PATIENCE_SECONDS` and `_LOOK_SECONDS`. A process that is late, or answers
   anything else, is ended, and there is no other for `_PAUSE_SECONDS`.
3. With one processor, or where several workers run, there is no second process.
4. However the service ends, its end of the socket does, and with that the second process.

Handles: requests as devices usually send them, for a key of P-256 and one name. Does not handle: others, nor whether a
key was published (`provisioning.ca.csr.good_as_usual`).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import structlog

from provisioning.ca.csr import may_be_as_usual
from provisioning.service.verifier_process import ANSWER_OCTETS, LENGTH_OCTETS, NO

log = structlog.get_logger(__name__)

_BUSY: Final = 100
"""Requests a second from which on it is worth it: 1 % of a core."""
_LONGEST: Final = 512
"""Octets of a request that is sent there; a usual one has 200 to 330."""
_MOST: Final = 8
_PATIENCE_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 1.0
"""How often it is looked whether the other process is late, or has had nothing to do."""
_PAUSE_SECONDS: Final = 60.0
_IDLE_SECONDS: Final = 60.0
_ENVIRONMENT: Final = ("LD_LIBRARY_PATH", "OPENSSL_CONF", "OPENSSL_MODULES", "PYTHONHOME")
"""What the other process gets of ours, which may have a passphrase in it."""

Start = Callable[[socket.socket], subprocess.Popen[bytes]]


def is_worth_it() -> bool:
    """Whether this process may run on more than one, and another like it can be started."""
    if not sys.executable:
        return False
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) > 1
    return (os.cpu_count() or 1) > 1


def start(theirs: socket.socket) -> subprocess.Popen[bytes]:
    """Start the other process, which is asked through *theirs*; raise OSError if the system gives none."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(each).absolute()) for each in sys.path)  # The same program.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "provisioning.service.verifier_process"],
        stdin=theirs.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the service.
    )


class Verifier:
    """Asks the other process, while `run` runs; used from one event loop."""

    def __init__(self, begin: Start = start, *, patience: float = _PATIENCE_SECONDS) -> None:
        """*begin* starts it; *patience* is how long it may take for an answer, in seconds."""
        self._begin = begin
        self._patience = patience
        self._wanted: Final = asyncio.Event()
        self._other: _Other | None = None
        self._second = 0
        self._seen = 0
        self._were_many = False

    def ask(self, der: bytes) -> asyncio.Future[bool] | None:
        """Return whether *der* is found good there; None: it is not asked for."""
        now = asyncio.get_running_loop().time()
        if not self._are_many(int(now)) or len(der) > _LONGEST or not may_be_as_usual(der):
            return None
        if self._other is None:
            self._wanted.set()
            return None
        return self._other.ask(der, now)

    def _are_many(self, second: int) -> bool:
        """Count one more in this *second*; return whether many have come in it, or came in the one before."""
        if second != self._second:
            self._were_many = self._seen >= _BUSY and second == self._second + 1
            self._second, self._seen = second, 0
        self._seen += 1
        return self._were_many or self._seen >= _BUSY

    async def run(self) -> None:
        """Have the other process while there is enough for it, until cancelled."""
        while True:
            await self._wanted.wait()
            try:
                failure = await self._have_one()
            except OSError as error:
                failure = f"the system gives none: {error.strerror}"
            if failure is not None:
                log.warning("verifier ended", code="VERIFIER_ENDED", detail=failure, pause=_PAUSE_SECONDS)
                await asyncio.sleep(_PAUSE_SECONDS)
            self._wanted.clear()

    async def _have_one(self) -> str | None:
        """Start one, and return why it has ended, once it has; None: there is nothing for it to do. Raises OSError."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                process = self._begin(theirs)
            other = _Other()
            try:
                ours.setblocking(False)
                await asyncio.get_running_loop().create_connection(lambda: other, sock=ours)
                self._other = other
                log.info("requests are verified by another process", process=process.pid)
                return await self._watch(other)
            finally:
                self._other = None
                other.end("")
                process.kill()
                process.wait()

    async def _watch(self, other: _Other) -> str | None:
        loop = asyncio.get_running_loop()
        while other.failure is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_SECONDS):
                    await other.ended.wait()
            now = loop.time()
            if other.waits_since < now - self._patience:
                other.end("it has not answered in time")
            elif other.asked_at < now - _IDLE_SECONDS:
                return None
        return other.failure


class _Other(asyncio.Protocol):
    """The connection to one process."""

    def __init__(self) -> None:
        self.ended: Final = asyncio.Event()
        self.failure: str | None = None
        self.asked_at = asyncio.get_running_loop().time()
        self._transport: asyncio.Transport | None = None
        self._is_ready = False
        self._unsent: list[bytes] = []
        self._unread = b""
        self._waiting: Final[deque[tuple[asyncio.Future[bool], bytes, float]]] = deque()
        """In order: who waits, the SHA-256 of the request, and since when."""

    @property
    def waits_since(self) -> float:
        """Since when the first of those who wait does."""
        return self._waiting[0][2] if self._waiting else float("inf")

    def ask(self, der: bytes, now: float) -> asyncio.Future[bool] | None:
        """Return whether *der* is found good; None: it is not asked for."""
        self.asked_at = now
        if not self._is_ready or len(self._waiting) >= _MOST:
            return None
        loop = asyncio.get_running_loop()
        if not self._unsent:
            loop.call_soon(self._send)
        self._unsent += (len(der).to_bytes(LENGTH_OCTETS), der)
        future: asyncio.Future[bool] = loop.create_future()
        self._waiting.append((future, hashlib.sha256(der).digest(), now))
        return future

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self._transport is not None and self.failure is None:
            self._transport.write(b"".join(unsent))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the *transport*."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Tell those who wait what was answered."""
        data, begin = self._unread + data, 0
        while len(data) >= (end := begin + ANSWER_OCTETS) and self.failure is None:
            answer, begin = data[begin:end], end
            if not self._is_ready and answer == NO:
                self._is_ready = True
                continue
            future, digest, _ = self._waiting.popleft() if self._waiting else (None, b"", 0)
            if answer not in (digest, NO) or future is None:
                self.end("it has answered what it was not asked")
            if future is not None and not future.done():  # Who waited may have gone.
                future.set_result(answer == digest)
        self._unread = data[begin:]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        """Tell that it has ended."""
        self.end("it has ended")

    def end(self, failure: str) -> None:
        """Ask no more, because of a *failure*: what waits is verified by whoever has asked."""
        if self.failure is not None:
            return
        self.failure = failure
        self._is_ready = False
        self.ended.set()
        if self._transport is not None:
            self._transport.abort()
        for future, _, _ in self._waiting:
            if not future.done():
                future.set_result(False)
        self._waiting.clear()
