"""An event loop that runs only when a test tells it to, with a clock in the test's hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class TurnedLoop:
    """What uses a loop is built on `loop`; `now` is the time there."""

    def __init__(self, now: float) -> None:
        self.loop = asyncio.new_event_loop()
        self.now = now
        self.loop.time = lambda: self.now  # type: ignore[method-assign]

    def go_round(self) -> None:
        """Let the loop look once at what is ready."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    def until(self, done: Callable[[], object]) -> None:
        for _ in range(10_000):
            if done():
                return
            self.go_round()
        raise AssertionError("it did not happen")
