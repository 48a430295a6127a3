"""The end of the process: what a start waits for is called off, and what cannot be called off is given up in time.

Theory
------
A coroutine can be cancelled; a name that is being looked up cannot, nor can a plugin's work in a thread, and a plugin
may not let itself be cancelled. The event loop and the interpreter wait for all of them before they end, so somebody
else has to end the process: a thread, which looks at nothing but the clock (`Ending`).

Rules
-----
1. What is given up is said, with code ``STOP_GAVE_UP``.
2. The store is closed in order unless that itself takes too long, or a plugin holds the loop: whoever waits is not
   waited for longer than leaves it its turn (`in_time`). What was answered is on disk in any case.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any, Final, TypeVar

import structlog

log = structlog.get_logger("broker")

Outcome = TypeVar("Outcome")

STOP_SECONDS: Final = 25.0
"""From the signal to the end: less than a service manager waits (deploy/systemd: 30)."""
LEFTOVER_SECONDS: Final = 1.0
"""For what is left when everything of ours is closed: threads, and names that are being looked up."""

_WORDS_SECONDS: Final = 1.0
_STOPPING: Final = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """The broker is to stop before it has begun."""


def heed_signals(stop: Callable[[], object]) -> None:
    """Call *stop* when SIGINT or SIGTERM comes first, whatever it interrupts, also while a plugin holds the loop.

    Another one is of no account: it would give the end more time, and may come when the loop is closed.
    """

    def heard(_number: int, _frame: FrameType | None) -> None:
        for number in _STOPPING:
            signal.signal(number, _heard_already)
        stop()

    for number in _STOPPING:
        signal.signal(number, heard)


def _heard_already(_number: int, _frame: FrameType | None) -> None:
    pass


class Ending:
    """The end of the process, which comes in time."""

    def __init__(self, leave: Callable[[int], object] = os._exit) -> None:
        """End it by *leave*, with an exit code."""
        self._leave = leave
        self._orders: SimpleQueue[tuple[float, int, str]] = SimpleQueue()
        threading.Thread(target=self._watch, name="ending", daemon=True).start()

    def within(self, seconds: float, code: int, last_words: str = "") -> None:
        """End in *seconds* with exit *code*, unless the process has ended by then; the latest call counts.

        *last_words* go to standard error then: whoever would have said them is still waiting. May be called by a signal
        handler, whatever it interrupts: this queue takes no lock, as the start of a thread, or an event, would.
        """
        self._orders.put((seconds, code, last_words))

    def _watch(self) -> None:
        order = self._orders.get()
        while True:
            try:
                order = self._orders.get(timeout=order[0])
            except Empty:
                self._cut_off(*order)
                return

    def _cut_off(self, seconds: float, code: int, last_words: str) -> None:
        speaker = threading.Thread(target=_say_why, args=(seconds, last_words), daemon=True)
        speaker.start()
        speaker.join(_WORDS_SECONDS)  # Whom nobody reads, a full pipe say, may be what everybody waits for.
        self._leave(code)


async def unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, Outcome], grace: float = 0.0) -> Outcome:
    """Return what *work* returns, and raise what it raises; `Stopped` if *stop* is set before.

    *work* then has *grace* more seconds to end by itself: an answer that is on its way may be the only one that there
    is. After that it is cancelled, and has ended when this returns.
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
    """Wait for *work*, *seconds* at most, and raise what it raises; if it has not ended by then, say that of *what*.

    It is cancelled then, and nobody waits for it: it may not let itself be cancelled.
    """
    doing = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({doing}, timeout=seconds)
    if done:
        doing.result()
        return
    doing.cancel()
    log.warning("given up at the stop", code="STOP_GAVE_UP", detail=f"{what} have not ended", seconds=seconds)


def _say_why(seconds: float, last_words: str) -> None:
    said = "names that are being looked up, or work of plugins, have not ended"
    with contextlib.suppress(OSError, ValueError):
        log.warning("given up at the stop", code="STOP_GAVE_UP", detail=said, seconds=seconds, threads=_places())
        sys.stderr.write(last_words)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()


def _places() -> dict[str, str]:
    """Return where each thread is that may keep the process from its end."""
    frames = sys._current_frames()  # noqa: SLF001 - documented, for debuggers; here for who reads the log
    places = {}
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        idle = frame is None or frame.f_globals.get("__name__") == "concurrent.futures.thread"
        if frame is not None and not idle and not thread.daemon:
            code = frame.f_code
            places[thread.name] = f"{code.co_name} ({code.co_filename}:{frame.f_lineno})"
    return places
