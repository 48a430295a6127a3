"""Ends a stopping process in time: whatever blocks it, a thread that only watches the clock ends it.

Theory
------
A coroutine can be cancelled; a call into foreign code cannot: a name resolution, a plugin's work
in a thread, a token that does not answer. The event loop and the interpreter wait for all of them before they end.

Rules
-----
1. What was abandoned is logged, with code ``STOP_GAVE_UP``, and the position of each thread that blocks the process.
2. Nothing is closed then: what was acknowledged was on disk before, and everything else is rolled back when the
   store is next opened.

Does not handle: a signal that arrives while the event loop's own thread is in such a call. Calls that may hang belong
elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final

_WORDS_SECONDS: Final = 1.0


class Ending:
    """Ends the process in time."""

    def __init__(self, log: Any, given_up: str, leave: Callable[[int], object] = os._exit) -> None:
        """*leave* ends the process with an exit code; *log* gets *given_up*: a sentence on what may be abandoned."""
        self._log = log
        self._given_up = given_up
        self._leave = leave
        self._orders: SimpleQueue[tuple[float, int, str]] = SimpleQueue()
        threading.Thread(target=self._watch, name="ending", daemon=True).start()

    def within(self, seconds: float, code: int, last_words: str = "") -> None:
        """End in *seconds* with exit *code*, unless the process has ended by then; the latest call counts.

        *last_words* then go to standard error, as the code that would have printed them is blocked. May be called by a
        signal handler, whatever it interrupts: this queue takes no lock, as starting a thread, or an event, would.
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
        speaker = threading.Thread(target=self._say_why, args=(seconds, last_words), daemon=True)
        speaker.start()
        speaker.join(_WORDS_SECONDS)  # Writing may block, on a full pipe that nobody reads.
        self._leave(code)

    def _say_why(self, seconds: float, last_words: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._log.warning(
                "stopped without waiting any longer",
                code="STOP_GAVE_UP",
                detail=self._given_up,
                seconds=seconds,
                threads=_places(),
            )
            sys.stderr.write(last_words)
            for stream in (sys.stdout, sys.stderr):
                stream.flush()


def _places() -> dict[str, str]:
    """Return the position of each thread that may keep the process from ending."""
    frames = sys._current_frames()  # noqa: SLF001 - documented, for debuggers; here for readers of the log
    places = {}
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        idle = frame is None or frame.f_globals.get("__name__") == "concurrent.futures.thread"
        if frame is not None and not idle and not thread.daemon:
            code = frame.f_code
            places[thread.name] = f"{code.co_name} ({code.co_filename}:{frame.f_lineno})"
    return places
