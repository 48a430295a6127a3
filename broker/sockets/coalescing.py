"""Whether to wait a moment before reading, so that what many clients send one by one is taken together.

Theory
------
One message costs the broker a waking, two looks at epoll, a write to the subscriber; ten that are read in one turn cost
the same (`broker.sockets.turn`). A fleet that sends at its usual pace sends one by one, and each message finds the
broker just gone to sleep. Network cards have the same trouble, and wait some microseconds before they interrupt
(interrupt coalescing, ``ethtool -C``). So does the broker: it finds a few ready, waits, and looks again.

A wait is worth it only if many send meanwhile, and whether they do is known from the last ones: a wait that brought
fewer than `_WORTH` is followed by one turn without, then three, seven, up to `_RAREST`; one that brought as many, by
none. For a wait ends with a waking, too, and everybody feels it: a few that it brings are better served as they come.
So who talks to the broker alone, or awaits each answer, is delayed in one turn of 1024.

A broker that has no time to lose does not wait either: if turn has followed turn, `_PRESSED` times, it is behind, and
what waits for it comes together by itself.

Rules
-----
1. Nobody waits when many are ready: then they are together already.
2. A wait is `seconds` long, a fraction of a millisecond, and 0 switches it off. The whole event loop waits.
3. No clock of its own: the times are passed in, in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_MANY: Final = 8
"""Ready clients that are enough for one turn."""
_RAREST: Final = 1023
"""Turns without a wait after many that brought hardly anybody."""
_WORTH: Final = 6
"""Clients that a wait has to bring so that the next turn waits, too (docs/decisions/0109)."""

_AT_ONCE: Final = 30e-6
"""Seconds between two turns in which nobody can have slept: the event loop's own way round."""
_PRESSED: Final = 8
"""Turns in a row of a broker that is behind."""


class Coalescing:
    """The memory of what waiting has brought."""

    __slots__ = ("_ended", "_left", "_pressed", "_seconds", "_skip", "_sleep")

    def __init__(self, seconds: Callable[[], float], sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait *seconds()* by *sleep*."""
        self._seconds = seconds
        self._sleep = sleep
        self._skip = 0
        """Turns without a wait that follow each one."""
        self._left = 0
        """Turns without a wait that are left."""
        self._ended = 0.0
        """When the last turn did."""
        self._pressed = 0
        """Turns that followed the one before at once."""

    def waited(self, ready: int, now: float) -> bool:
        """Wait, if it is worth it in the turn that begins *now* with *ready* clients; return whether to look again."""
        if now - self._ended > _AT_ONCE:
            self._pressed = 0
        elif self._pressed < _PRESSED:
            self._pressed += 1
        if not 0 < ready < _MANY or self._pressed >= _PRESSED:
            return False
        if self._left:
            self._left -= 1
            return False
        seconds = self._seconds()
        if seconds <= 0:
            return False
        self._sleep(seconds)
        return True

    def ended(self, now: float) -> None:
        """Take note that the turn has."""
        self._ended = now

    def brought(self, more: int) -> None:
        """Say how many *more* were ready after a wait."""
        if more >= _WORTH:
            self._skip = 0
        else:
            self._skip = min(2 * self._skip + 1, _RAREST)
        self._left = self._skip
