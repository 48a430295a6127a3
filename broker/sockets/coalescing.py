"""Whether to wait a moment before reading, so that what many clients send one by one is handled together.

Theory
------
One message costs the broker a wake-up, two calls of epoll and a write to the subscriber; ten messages read in one turn
cost the same (`broker.sockets.turn`). A fleet at its usual pace sends one by one, and each message finds the broker
just gone to sleep. Network cards solve this by waiting some microseconds before an interrupt (interrupt coalescing,
``ethtool -C``). So does the broker: if it finds a few clients ready, it waits and looks again.

A wait pays only if many clients send during it, and the previous waits tell whether they do. After a wait that brought
fewer than `_WORTH`, one turn does not wait, then three, seven, up to `_RAREST`; after one that brought as many, the
next turn waits again. A wait ends with a wake-up too, and delays everybody, so a few clients are better served as they
come. A client that uses the broker alone, or awaits each answer, is delayed in one turn of 1024.

A broker that is behind does not wait either: if `_PRESSED` turns have followed each other directly, what is pending
accumulates by itself.

Rules
-----
1. No wait when many are ready: they are together already.
2. A wait lasts `seconds`, a fraction of a millisecond; 0 disables it. The whole event loop waits.
3. No clock of its own: the times are passed in, in seconds, and only where they matter (`skips`, `is_near`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_MANY: Final = 8
"""Ready clients that are enough for one turn."""
_RAREST: Final = 1023
"""Turns without a wait after many waits that brought hardly any client."""
_WORTH: Final = 6
"""Clients that a wait must bring for the next turn to wait too (docs/decisions/0109)."""

_AT_ONCE: Final = 30e-6
"""Seconds between two turns during which the process cannot have slept: the event loop's own overhead."""
_PRESSED: Final = 8
"""Direct successions of turns that show that the broker is behind."""


class Coalescing:
    """What recent waits have brought."""

    __slots__ = ("_ended", "_left", "_pressed", "_seconds", "_skip", "_sleep")

    def __init__(self, seconds: Callable[[], float], sleep: Callable[[float], None] = time.sleep) -> None:
        """Wait for *seconds()*, using *sleep*."""
        self._seconds = seconds
        self._sleep = sleep
        self._skip = 0
        """How many turns without a wait follow each wait."""
        self._left = 0
        """How many of those turns are left."""
        self._ended = 0.0
        """When the last turn ended."""
        self._pressed = 0
        """How many turns have directly followed the previous one."""

    @property
    def is_near(self) -> bool:
        """Whether the next wait is so near that the times of the turns matter: whether they follow each other."""
        return self._left <= _PRESSED

    def skips(self, ready: int) -> bool:
        """Count a turn with *ready* clients for which no clock is needed; return whether it is one."""
        if self._left <= _PRESSED:
            return False
        if 0 < ready < _MANY:
            self._left -= 1
        return True

    def waited(self, ready: int, now: float) -> bool:
        """Wait if that pays in the turn that begins *now* with *ready* clients; return whether to look again."""
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
        """Take note that the turn has ended."""
        self._ended = now

    def brought(self, more: int) -> None:
        """Record how many *more* were ready after a wait."""
        if more >= _WORTH:
            self._skip = 0
        else:
            self._skip = min(2 * self._skip + 1, _RAREST)
        self._left = self._skip
