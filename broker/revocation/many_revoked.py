"""Holds back what is said about clients while many certificates are revoked: `held_lines` and `history` of the engine.

Rules
-----
1. The first few have their lines at once, unless more come with them: so it is where a device is revoked alone.
2. The lines are written once no more have come for `_QUIET_SECONDS`, or after `_LONGEST_SECONDS`; before them, the
   history is filed, in portions between which the event loop serves others.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from broker.engine.held_lines import HeldLines
from broker.engine.history import History
from provisioning.program.moments import rfc3339_exactly

_FEW: Final = 8
_QUIET_SECONDS: Final = 0.02
_LONGEST_SECONDS: Final = 1.0
_PORTION: Final = 128
"""Events that are filed in one turn: about a millisecond."""


class ManyRevoked:
    """Counts revocations that come one upon another."""

    def __init__(self, lines: HeldLines, history: History, clock: Callable[[], float]) -> None:
        self._lines = lines
        self._history = history
        self._clock = clock
        self._together = 0
        self._last = 0.0
        self._since = 0.0
        """When lines began to be held."""
        self._holds = False

    def come(self, now: float, number: int = 1) -> None:
        """Take note of that *number* of revocations that have lines."""
        if now - self._last > _QUIET_SECONDS:
            self._together = 0
        self._together += number
        self._last = now
        if self._together > _FEW and not self._holds:
            self._holds = True
            self._since = now
            self._lines.hold(time.time, _written)
            self._history.hold()
            asyncio.get_running_loop().call_later(_QUIET_SECONDS, self._look)

    def end(self) -> None:
        """Write what is held back: the broker stops."""
        self._holds = False
        self._history.release()
        self._history.settle()
        self._lines.flush()

    def _look(self) -> None:
        if not self._holds:
            return
        now = self._clock()
        left = min(self._last + _QUIET_SECONDS, self._since + _LONGEST_SECONDS) - now
        if left > 0:
            asyncio.get_running_loop().call_later(left, self._look)
        else:
            self._holds = False
            self._together = 0
            self._history.release()
            self._file()

    def _file(self) -> None:
        """File a portion of the history; then let the lines be written."""
        if self._holds:
            return
        if self._history.settle(_PORTION):
            asyncio.get_running_loop().call_soon(self._file)
        else:
            self._lines.release()


def _written(said_at: float) -> str:
    """Return as a line has it when it was said: a number for each is a fifth of the cost of a date."""
    return rfc3339_exactly(datetime.fromtimestamp(said_at, UTC))
