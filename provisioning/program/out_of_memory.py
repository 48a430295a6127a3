"""Ends a process that has no memory left: at once, with a last message, to be restarted.

Theory
------
If an allocation fails, any line may fail: one that reads a signal from its pipe, one that logs the reason, one in the
middle of a change to two related lists. A service that continues may miss signals, serve some and not others, and
still look alive. Nothing is acknowledged before it is on the disk, so being killed loses nothing that an
orderly end would save, and its supervisor restarts it, with memory
(docs/decisions/0158-out-of-memory.md).

Rules
-----
1. A `MemoryError` that reaches the event loop, or a thread that cannot be started, ends the process: from a callback,
   from a task of ours (`told`), from a thread, and one that Python cannot raise to anybody. One that a caller answers,
   for instance by refusing a request with 500, does not reach it. One between a pool's thread and whoever waits for its
   result, the pool only logs: nobody would ever be told, and no thread takes the place of one that has ended.
2. Nothing is allocated then: the message exists from the start, and some memory is reserved for writing it.
3. It does not wait for a reader of the message.

Handles: allocations that the C library reports as failed. Does not handle: the kernel's OOM killer; libraries that
end the process themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

TaskT = TypeVar("TaskT")

CODE: Final = 1
"""The process's exit code."""
_RESERVE_BYTES: Final = 256 * 1024
_NO_THREAD: Final = ("can't start new thread",)
"""What Python says if there is no memory for its stack, or a limit of threads is reached (TasksMax=, ulimit -u)."""
_STDERR: Final = 2
_POOLS: Final = logging.getLogger("concurrent.futures")


class _End:
    """Ends the process, with a message."""

    def __init__(self, program: str, leave: Callable[[int], object]) -> None:
        self._leave = leave
        self._words = (
            f"{program}: out of memory, and ended at once, to be started again; nothing that was promised is lost. "
            "Give it more (MemoryMax=, ulimit -v, --memory; TasksMax=, ulimit -u), or less to hold (docs/changes.md)\n"
        ).encode()
        self._reserve = bytearray(_RESERVE_BYTES)

    def come_by(self, error: object) -> None:
        """End the process if *error* is, or contains, a `MemoryError`; otherwise return."""
        if not _is_of_memory(error):
            return
        with contextlib.suppress(MemoryError, OSError, ValueError):
            self._reserve.clear()
            if _STDERR in select.select((), (_STDERR,), (), 0)[1]:
                os.write(_STDERR, self._words)
        self._leave(CODE)


@contextlib.contextmanager
def watched(loop: asyncio.AbstractEventLoop, program: str, leave: Callable[[int], object] = os._exit) -> Iterator[None]:
    """End the process, by *leave*, if in this block *loop*, or one of Python's exception hooks, gets a `MemoryError`.

    *program* is its name in the message.
    """
    end = _End(program, leave)
    of_threads, of_nobody = threading.excepthook, sys.unraisablehook

    def in_loop(of: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        end.come_by(context.get("exception"))
        of.default_exception_handler(context)

    def in_thread(args: threading.ExceptHookArgs) -> None:
        end.come_by(args.exc_value)
        of_threads(args)

    def nowhere(args: sys.UnraisableHookArgs) -> None:
        end.come_by(args.exc_value)
        of_nobody(args)

    def in_pool(record: logging.LogRecord) -> bool:
        end.come_by(record.exc_info and record.exc_info[1])
        return True

    loop.set_exception_handler(in_loop)
    threading.excepthook, sys.unraisablehook = in_thread, nowhere
    _POOLS.addFilter(in_pool)
    try:
        yield
    except BaseException as error:
        end.come_by(error)
        raise
    finally:
        threading.excepthook, sys.unraisablehook = of_threads, of_nobody
        _POOLS.removeFilter(in_pool)


def told(task: asyncio.Task[TaskT]) -> asyncio.Task[TaskT]:
    """Return *task*, a part of a service, with its `MemoryError` reported to the loop before the other parts end."""
    task.add_done_callback(_tell)
    return task


def _tell(task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if _is_of_memory(error):
        task.get_loop().call_exception_handler({"message": "out of memory", "exception": error})


def _is_of_memory(error: object) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_of_memory, error.exceptions))
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and error.args == _NO_THREAD)
