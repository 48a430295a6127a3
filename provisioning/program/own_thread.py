"""Runs a call in a thread of its own: one that never returns keeps nobody else's waiting, nor the process from its end.

Theory
------
A call into the system, such as reading a file on a disk that answers no more, cannot be cancelled. `asyncio.to_thread`
has a few threads for everybody, five on a machine with one processor: a few such calls occupy all of them, and whatever
else takes a thread waits for ever. And at the end the event loop and the interpreter wait for them.

Rules
-----
1. The caller bounds how many there are: each takes a thread, which costs some 50 µs.
2. Whoever waits may give up; the call goes on, and nobody is told of its result.
3. The threads end with the process, and keep it from nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")


async def in_own_thread(call: Callable[[], T], name: str) -> T:
    """Return what *call* returns, or raise what it raises; *name* is the thread's.

    Raises `OSError`, too, where the system gives no thread.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001 - whoever waits gets it
            _tell(loop, answer, partial(answer.set_exception, error))
        else:
            _tell(loop, answer, partial(answer.set_result, result))

    try:
        threading.Thread(target=work, name=name, daemon=True).start()
    except RuntimeError as error:  # At the system's limit.
        raise OSError(errno.EAGAIN, str(error)) from error
    return await answer


def _tell(loop: asyncio.AbstractEventLoop, answer: asyncio.Future[T], tell: Callable[[], None]) -> None:
    """Call *tell* in the *loop*, unless nobody waits for the *answer* any more."""
    with contextlib.suppress(RuntimeError):  # The loop is closed.
        loop.call_soon_threadsafe(lambda: None if answer.done() else tell())
