"""Log lines about clients: written at once or, while many sessions are being closed, after the last of them.

Theory
------
Two lines about a revoked session take longer than closing it. When a thousand certificates are revoked by one call, the
last device would wait for the lines of all others. So whoever closes many holds the lines back (`hold`); each gets the
time at which it was said, and all are written when it is done (`release`), in portions between which the event loop
serves others.

Rules
-----
1. The order is kept: while lines wait, later ones wait behind them.
2. At most `MOST` wait: beyond that, the oldest is written for each that is added.
3. Only lines wait. What counts as evidence is in the audit log, and what decides about clients in the engine: both are
   up to date. If the process is killed, waiting lines are lost; one that stops writes them (`flush`).
4. No clock: whoever holds lines back brings one.
5. What a line says is put together when it is written, where it can be (`tell`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog

log = structlog.get_logger("broker")

MOST: Final = 20_000
_PORTION: Final = 32
"""Lines written in one turn: about a millisecond."""


class HeldLines:
    """The lines of one broker."""

    __slots__ = ("_as_written", "_call_soon", "_clock", "_held", "_scheduled", "_waiting")

    def __init__(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        self._call_soon = call_soon
        self._clock: Callable[[], Any] | None = None
        """Returns the time for a line. None: no line waits, nor has to."""
        self._as_written: Callable[[Any], str] = str
        self._held = False
        self._scheduled = False
        self._waiting: deque[tuple[str, Callable[..., Mapping[str, object]], tuple[object, ...], Any]] = deque()

    def info(self, event: str, **facts: object) -> None:
        """Write a line, now or later."""
        self.tell(event, _given, facts)

    def tell(self, event: str, facts: Callable[..., Mapping[str, object]], *about: object) -> None:
        """Write a line with ``facts(*about)``, which are the same whenever they are asked for, now or later."""
        if self._clock is None:
            log.info(event, **facts(*about))
            return
        self._waiting.append((event, facts, about, self._clock()))
        if len(self._waiting) > MOST:
            self._write(1)

    def hold(self, clock: Callable[[], Any], as_written: Callable[[Any], str] = str) -> None:
        """Let all lines wait until `release`; *clock* returns a time, and *as_written* that time as a line has it."""
        self._clock, self._as_written, self._held = clock, as_written, True

    def release(self) -> None:
        """Write what waits, in portions."""
        self._held = False
        if self._clock is not None and not self._scheduled:
            self._scheduled = True
            self._call_soon(self._go_on)

    def flush(self) -> None:
        """Write all that waits, now."""
        self._held = False
        self._write(len(self._waiting))
        self._clock = None

    def _go_on(self) -> None:
        self._scheduled = False
        if self._held or self._clock is None:
            return
        self._write(_PORTION)
        if self._waiting:
            self._scheduled = True
            self._call_soon(self._go_on)
        else:
            self._clock = None

    def _write(self, most: int) -> None:
        for _ in range(min(most, len(self._waiting))):
            event, facts, about, said_at = self._waiting.popleft()
            log.info(event, **facts(*about), timestamp=self._as_written(said_at))


def _given(facts: Mapping[str, object]) -> Mapping[str, object]:
    return facts
