"""SIGTERM ends a command as Ctrl-C does: it says how far it has come, and what it has begun to print is whole.

A time limit, a cancelled job and a service manager send it. Left to itself it ends the process in the middle of a line.

Rules
-----
1. The task is cancelled, so whatever it has to say or to close at its end happens.
2. A second one ends the process at once: also one that waits for somebody to read what it prints.
3. Who has started the process with SIGTERM ignored is obeyed.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Final

EXIT_CODE: Final = 128 + signal.SIGTERM


@contextlib.contextmanager
def cancelled_by_sigterm() -> Iterator[None]:
    """Have SIGTERM cancel the running task, of the main thread."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    if task is None:
        raise RuntimeError("no task is running that could be cancelled")

    def cancel(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        loop.call_soon_threadsafe(task.cancel)

    before = signal.signal(signal.SIGTERM, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
