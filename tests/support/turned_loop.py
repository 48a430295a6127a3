"""An event loop that runs only when a test tells it to, with a clock in the test's hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any


class TurnedLoop:
    """What uses a loop is built on `loop`; `now` is the time there."""

    def __init__(self, now: float) -> None:
        self.loop: Any = asyncio.new_event_loop()
        self.now = now
        self.loop.time = lambda: self.now  # type: ignore[method-assign]

    def go_round(self) -> None:
        """Let the loop look once at what is ready."""
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()

    @property
    def is_ready(self) -> bool:
        """Whether the loop has something to do now, for which no file descriptor has to be looked at."""
        timers = self.loop._scheduled
        return bool(self.loop._ready) or any(each.when() <= self.now and not each.cancelled() for each in timers)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Let what is called find this loop running, as what it calls does."""
        asyncio._set_running_loop(self.loop)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def close(self) -> None:
        """Cancel what still runs, and end."""
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        while self.is_ready:
            self.go_round()
        self.loop.close()

    def until(self, done: Callable[[], object]) -> None:
        for _ in range(10_000):
            if done():
                return
            self.go_round()
        raise AssertionError("it did not happen")
