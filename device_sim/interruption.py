"""Runs one coroutine so that Ctrl-C, SIGTERM and a closed terminal end it in order.

Rules
-----
1. The first signal cancels the main task, so every context manager cleans up; each further one cancels again, which
   shortens the clean-up (`processes`) and never skips it.
2. A story that only waits for the user (`Interruption.wait`) is not cancelled: the wait returns.
3. A story that has come to its end (`Interruption.too_late`) does not lose its result to a first signal in the seconds
   in which it cleans up: only the next one cancels.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from provisioning.program.event_loop import new_event_loop

T = TypeVar("T")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """The user ended the run; *exit_code* is the shell's convention for the signal."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(f"stopped by {number.name}; nothing is left running")
        self.exit_code = 128 + number


class Interruption:
    """Tells a story that the user wants it to end."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._waiting: asyncio.Future[signal.Signals] | None = None
        self._told = False
        """Whether a signal has been heeded, or come too late: the next one cancels."""
        self._too_late = False

    async def wait(self) -> signal.Signals:
        """Return the signal when the user interrupts; the next one cancels."""
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            return await self._waiting
        finally:
            self._waiting = None

    def too_late(self) -> None:
        """Note that the result is known, and only the clean-up remains."""
        self._too_late = True

    @contextmanager
    def _handled(self, task: asyncio.Task[Any]) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._signalled, number, task)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    def _signalled(self, number: signal.Signals, task: asyncio.Task[Any]) -> None:
        waits = self._waiting is not None and not self._waiting.done()
        first, self._told = not self._told, True
        if self._waiting is not None and waits:
            self._waiting.set_result(number)
            return
        if self._too_late and first:
            return
        self.received = number
        task.cancel()


def run(story: Callable[[Interruption], Coroutine[Any, Any, T]]) -> T:
    """Run *story* to its end on a loop of its own and return its result; raise `Interrupted` if a signal ended it."""
    interruption = Interruption()

    async def main() -> T:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a coroutine without a task")
        with interruption._handled(task):  # noqa: SLF001 - the two are one thing
            return await story(interruption)

    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(main())
    except (asyncio.CancelledError, BaseExceptionGroup) as error:
        if interruption.received is None:
            raise
        raise Interrupted(interruption.received) from error
