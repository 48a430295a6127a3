"""The end of the process: what a start waits for is cancelled, and what cannot be cancelled is given up in time.

Theory
------
A coroutine can be cancelled; a name look-up cannot, nor can a plugin's work in a thread, and a plugin may resist being
cancelled. The event loop and the interpreter wait for all of them before they end, so the process must be ended from
outside: `provisioning.program.ending`.

Rules
-----
1. What is given up is logged, with code ``STOP_GAVE_UP``.
2. The store is closed in order, unless that itself takes too long or a plugin blocks the loop: everything before it is
   limited to a time that leaves enough for the store (`in_time`). What was answered is on disk in any case.
3. A SIGHUP that somebody sends reloads; one from a terminal that is closed ends the broker
   (`provisioning.program.hangup`).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Coroutine
from types import FrameType
from typing import Any, Final, TypeVar

import structlog

from provisioning.program.hangup import SETTLE_SECONDS, Hangups

log = structlog.get_logger("broker")

Outcome = TypeVar("Outcome")

STOP_SECONDS: Final = 25.0
"""From the signal to the end: less than a service manager waits (deploy/systemd: 30)."""
LEFTOVER_SECONDS: Final = 1.0
"""For what remains when everything of ours is closed: threads of plugins."""

GIVEN_UP: Final = "work of plugins has not ended"
_STOPPING: Final = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """The broker is to stop before it has begun."""


def heed_signals(stop: Callable[[], object]) -> None:
    """Call *stop* at the first SIGINT or SIGTERM, whatever it interrupts, even while a plugin blocks the loop.

    Further signals are ignored: they would only delay the end, and may arrive when the loop is closed.
    """

    def heard(_number: int, _frame: FrameType | None) -> None:
        for number in _STOPPING:
            signal.signal(number, _heard_already)
        stop()

    for number in _STOPPING:
        signal.signal(number, heard)


def heed_hangups(loop: asyncio.AbstractEventLoop, reload: Callable[[], object], stop: Callable[[], object]) -> None:
    """Call *reload* on SIGHUP, or *stop* if it came because the terminal is gone.

    If SIGHUP was ignored when the process was started (``nohup``), losing the terminal does not stop the broker.
    """
    hangups = Hangups()

    def settled() -> None:
        if hangups.terminal_is_gone():
            log.info("the terminal is gone")
            stop()
        else:
            reload()

    def heard() -> None:
        loop.call_later(SETTLE_SECONDS, settled)

    loop.add_signal_handler(signal.SIGHUP, heard if hangups.heeded else reload)


def _heard_already(_number: int, _frame: FrameType | None) -> None:
    pass


async def unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, Outcome], grace: float = 0.0) -> Outcome:
    """Return what *work* returns, and raise what it raises; `Stopped` if *stop* is set before.

    *work* then has *grace* more seconds to end by itself: an answer on its way may be the only one there is. After that
    it is cancelled, and has ended when this returns.
    """
    doing = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({doing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set() and not doing.done():
            await asyncio.wait({doing}, timeout=grace)
    finally:
        ended = doing.done()
        stopping.cancel()
        doing.cancel()
        await asyncio.wait({doing, stopping})
    if ended:
        outcome = doing.result()
        if not stop.is_set():
            return outcome
    raise Stopped


async def in_time(what: str, work: Awaitable[object], seconds: float) -> None:
    """Wait for *work*, at most *seconds*, and raise what it raises; if it has not ended by then, log that about *what*.

    It is cancelled then, without waiting for it to end: it may resist.
    """
    doing = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({doing}, timeout=seconds)
    if done:
        doing.result()
        return
    doing.cancel()
    log.warning(
        "stopped without waiting any longer", code="STOP_GAVE_UP", detail=f"{what} have not ended", seconds=seconds
    )
