"""A question asked elsewhere while its client waits: before admission, or with the packet that it concerns.

Rules
-----
1. Until it is answered the client is not admitted, or its packet is not handled; the client is not read.
2. It is answered once. No I/O, no clock: the party that answers has both, and passes the time with the answer.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.admission.refusal import Refused


class Waits(Exception):
    """The packet cannot be handled yet; the rest of what was read is kept until it can be."""


class Inquiry:
    """One question; `refusal` is the answer when it is `done`: None lets the client in."""

    __slots__ = ("_waiting", "done", "refusal")

    def __init__(self) -> None:
        self.done = False
        self.refusal: Refused | None = None
        self._waiting: Callable[[float], None] | None = None

    def answer(self, refusal: Refused | None, now: float) -> None:
        """Record the answer, at monotonic time *now*."""
        if self.done:
            return
        self.done = True
        self.refusal = refusal
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting(now)

    def when_done(self, call: Callable[[float], None]) -> None:
        """Call *call* with the time of the answer."""
        self._waiting = call
