"""The event loop of the three programs: uvloop where there is one, with look-ups of names in threads of their own.

Theory
------
A look-up is a call of the C library that nothing ends before its time, half a minute and more where no name server
answers. uvloop has four threads for them, asyncio a few for everything that takes one, as building a CRL does. Whoever
asks gives up after some seconds and asks again, so a few names whose servers are gone would occupy all of them, and no
other name would be found: not that of the revocation feed, nor ``localhost``. And either waits for its threads at the
end: Ctrl-C would be heeded when the library gives up.

Rules
-----
1. Of one name there is one look-up at a time; whoever asks meanwhile gets its answer.
2. Of `MOST` at a time each has its own thread; beyond that, or where the system gives no thread, it fails at once, as
   if no name server had answered.
3. The threads end with the process, and keep it from nothing.

Does not handle: names given to uvloop's own `create_connection`. Our HTTP clients look them up before (anyio).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from typing import Any, Final

from provisioning.program.shielded import shielded

MOST: Final = 64
"""Names that are looked up at a time."""

Found = list[tuple[Any, ...]]
_Asked = tuple[Any, ...]


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Return a new loop, not running."""
    base: type[asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop
    with contextlib.suppress(ImportError):  # Not available on every platform; all three work without.
        import uvloop

        base = uvloop.Loop
    loop: asyncio.AbstractEventLoop = type("FleetgateLoop", (LookUps, base), {})()
    return loop


class LookUps:
    """Replaces a loop's look-ups; above its class."""

    def __init__(self) -> None:
        super().__init__()
        self._under_way: dict[_Asked, asyncio.Future[Found]] = {}

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002 - asyncio's
        proto: int = 0,
        flags: int = 0,
    ) -> Found:
        """Return the addresses of *host*, as `socket.getaddrinfo` does."""
        asked = (host, port, family, type, proto, flags)
        if host is None or _is_address(host):
            return socket.getaddrinfo(*asked[:-1], flags | socket.AI_NUMERICHOST)  # Nobody is asked.
        answer = self._under_way.get(asked)
        if answer is None:
            if len(self._under_way) >= MOST:
                raise socket.gaierror(socket.EAI_AGAIN, f"{MOST} names are being looked up already")
            loop = asyncio.get_running_loop()
            answer = loop.create_future()
            try:
                threading.Thread(target=self._look_up, args=(loop, asked, answer), name="look-up", daemon=True).start()
            except RuntimeError as error:  # At the system's limit.
                raise socket.gaierror(socket.EAI_AGAIN, str(error)) from error
            self._under_way[asked] = answer
        return await shielded(answer)

    def _look_up(self, loop: asyncio.AbstractEventLoop, asked: _Asked, answer: asyncio.Future[Found]) -> None:
        found: Found | Exception
        try:
            found = socket.getaddrinfo(*asked)
        except Exception as error:  # noqa: BLE001 - whoever has asked gets it
            found = error
        with contextlib.suppress(RuntimeError):  # The loop is closed.
            loop.call_soon_threadsafe(self._found, asked, answer, found)

    def _found(self, asked: _Asked, answer: asyncio.Future[Found], found: Found | Exception) -> None:
        del self._under_way[asked]
        if answer.done():
            return
        if isinstance(found, Exception):
            answer.set_exception(found)
            answer.exception()  # Perhaps nobody waits for it any more.
        else:
            answer.set_result(found)


def _is_address(host: bytes | str) -> bool:
    text = host.decode(errors="replace") if isinstance(host, bytes) else host
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, text.partition("%")[0])
            return True
    return False
