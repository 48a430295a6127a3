"""Holds back the log lines about clients while many certificates are being revoked (`broker.engine.held_lines`).

Rules
-----
1. The first few have their lines at once: so it is where a device is revoked alone.
2. The lines are written once no more have come for `_QUIET_SECONDS`, or after `_LONGEST_SECONDS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Final

from broker.engine.held_lines import HeldLines
from provisioning.program.logs import written

_FEW: Final = 8
_QUIET_SECONDS: Final = 0.02
_LONGEST_SECONDS: Final = 1.0

_now: Final = partial(datetime.now, UTC)


class ManyRevoked:
    """Counts revocations that come one upon another."""

    def __init__(self, lines: HeldLines, clock: Callable[[], float]) -> None:
        self._lines = lines
        self._clock = clock
        self._together = 0
        self._last = 0.0
        self._since = 0.0
        """When lines began to be held."""
        self._holds = False

    def one(self, now: float) -> None:
        """Take note of a revocation that has lines."""
        if now - self._last > _QUIET_SECONDS:
            self._together = 0
        self._together += 1
        self._last = now
        if self._together > _FEW and not self._holds:
            self._holds = True
            self._since = now
            self._lines.hold(_now, written)
            asyncio.get_running_loop().call_later(_QUIET_SECONDS, self._look)

    def end(self) -> None:
        """Write what is held back: the broker stops."""
        self._holds = False
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
            self._lines.release()
