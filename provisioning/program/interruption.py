"""Ctrl-C ends a process at once, like any program, while it does what has nothing to clean up.

Python's own handler raises an exception, once the code that runs returns to the interpreter; and asyncio waits for the
thread that a task waits for. The traceback of an import is of no use, and who reads a log of a million entries no
longer wants to know.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Final

EXIT_CODE: Final = 128 + signal.SIGINT
"""Of a program that Ctrl-C has ended, as a shell says it."""


@contextlib.contextmanager
def ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once, unless somebody else handles it."""
    # Only the main thread may change a signal's handler; and one that was already set stays.
    plain = threading.current_thread() is threading.main_thread() and (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if plain:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        if plain:
            signal.signal(signal.SIGINT, signal.default_int_handler)
