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
3. Names that others have chosen, as a partner's CA does in certificates, are looked up on behalf of that party
   (`ON_BEHALF_OF`): `MOST_OF_ONE` at a time for each, and `MOST_OF_OTHERS` for all of them. The rest is for what the
   settings name, such as the revocation feed: whoever has a CA, and a domain whose name servers hang, can name a new
   host in each certificate.
4. The threads end with the process, and keep it from nothing.

Does not handle: names given to uvloop's own `create_connection`. Our HTTP clients look them up before (anyio).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from contextvars import ContextVar
from typing import Any, Final

from provisioning.program.shielded import shielded

MOST: Final = 64
"""Names that are looked up at a time."""
MOST_OF_ONE: Final = 16
MOST_OF_OTHERS: Final = 48
ON_BEHALF_OF: Final[ContextVar[str | None]] = ContextVar("ON_BEHALF_OF", default=None)
"""For whom a task looks up names that it has not chosen; None: they are from the settings."""

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
        self._of_others: Counter[str] = Counter()

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
            whose = ON_BEHALF_OF.get()
            self._check_room(whose)
            loop = asyncio.get_running_loop()
            answer = loop.create_future()
            try:
                threading.Thread(target=self._look_up, args=(loop, asked, answer), name="look-up", daemon=True).start()
            except RuntimeError as error:  # At the system's limit.
                raise socket.gaierror(socket.EAI_AGAIN, str(error)) from error
            self._under_way[asked] = answer
            if whose is not None:
                self._of_others[whose] += 1
                answer.add_done_callback(lambda _: self._ended(whose))
        return await shielded(answer)

    def _check_room(self, whose: str | None) -> None:
        """Raise `OSError` if too many names are being looked up already; *whose* as in `ON_BEHALF_OF`."""
        bounds = [(len(self._under_way), MOST)]
        if whose is not None:
            bounds += [(self._of_others[whose], MOST_OF_ONE), (self._of_others.total(), MOST_OF_OTHERS)]
        for number, most in bounds:
            if number >= most:
                raise socket.gaierror(socket.EAI_AGAIN, f"{most} names are being looked up already")

    def _ended(self, whose: str) -> None:
        self._of_others[whose] -= 1
        if not self._of_others[whose]:
            del self._of_others[whose]

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
