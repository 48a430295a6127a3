"""The end of a process that has no memory left: at once, with its last words, to be started again.

Theory
------
Where an allocation fails, any line may: the one that takes a signal off its pipe, the one that says why in the log, the
one in the middle of a change to two lists that belong together. A service that goes on hears no signal, serves some
and not others, and looks alive. Nobody is promised what is not on the disk, so to be killed costs it nothing that an
orderly end would save, and whoever supervises it starts it again, with memory
(docs/decisions/0158-out-of-memory-is-the-end.md).

Rules
-----
1. Whatever reaches the event loop as a `MemoryError` ends the process, from a callback as from a task of ours (`told`),
   from a thread, and from what Python can tell nobody of. What a caller has an answer for, a request that is refused
   with 500 say, does not reach it.
2. Nothing is made then: the words are there from the start, and some memory is held until it is needed for them.
3. Nobody waits for who does not read them.

Handles: what Python is told by the C library. Does not handle: the kernel's killer, which asks nobody; libraries that
end the process themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

TaskT = TypeVar("TaskT")

CODE: Final = 1
"""With which the process ends."""
_RESERVE_BYTES: Final = 256 * 1024
_STDERR: Final = 2


class _End:
    """The end of a process, and what it says."""

    def __init__(self, program: str, leave: Callable[[int], object]) -> None:
        self._leave = leave
        self._words = (
            f"{program}: out of memory, and ended at once, to be started again; nothing that was promised is lost. "
            "Give it more (MemoryMax=, ulimit -v, --memory), or less to hold (docs/operations.md)\n"
        ).encode()
        self._reserve = bytearray(_RESERVE_BYTES)

    def come_by(self, error: object) -> None:
        """End the process if *error* says that there is no memory; return if it does not."""
        if not _is_of_memory(error):
            return
        with contextlib.suppress(MemoryError, OSError, ValueError):
            self._reserve.clear()
            if _STDERR in select.select((), (_STDERR,), (), 0)[1]:
                os.write(_STDERR, self._words)
        self._leave(CODE)


@contextlib.contextmanager
def watched(loop: asyncio.AbstractEventLoop, program: str, leave: Callable[[int], object] = os._exit) -> Iterator[None]:
    """End the process, by *leave*, if in this block *loop*, or whoever hears of faults, hears of a `MemoryError`.

    *program* is who says so.
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

    loop.set_exception_handler(in_loop)
    threading.excepthook, sys.unraisablehook = in_thread, nowhere
    try:
        yield
    except BaseException as error:
        end.come_by(error)
        raise
    finally:
        threading.excepthook, sys.unraisablehook = of_threads, of_nobody


def told(task: asyncio.Task[TaskT]) -> asyncio.Task[TaskT]:
    """Return *task*, a part of a service, of whose `MemoryError` its loop is told before others end in order."""
    task.add_done_callback(_tell)
    return task


def _tell(task: asyncio.Task[Any]) -> None:
    error = None if task.cancelled() else task.exception()
    if _is_of_memory(error):
        task.get_loop().call_exception_handler({"message": "out of memory", "exception": error})


def _is_of_memory(error: object) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_of_memory, error.exceptions))
    return isinstance(error, MemoryError)
