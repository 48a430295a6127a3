"""A limit to the processor time of a call that others can make arbitrarily long: the match of a regular expression.

Theory
------
An operator writes the pattern, a CA the text. Many a harmless pattern takes time exponential in the length of the text,
28 characters may take ten seconds, and the library has no limit. But it looks for signals while it searches, if it runs
in the main thread. So a timer is set, whose signal raises `TooLong` there.

Rules
-----
1. The time is the main thread's own: on a busy machine nobody is refused for its slowness, nor for what other threads
   do meanwhile. The timer counts that of all threads (ITIMER_VIRTUAL, in ticks of some milliseconds), so at its signal
   the thread's time is looked at, and while there is some left, the timer is set again.
2. The signal raises within the block and nowhere else, however late it is handled.
3. In other threads there is no limit: they stop no event loop for as long, and a signal is handled in the main thread.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_LEAST = 0.001
"""Seconds: a timer for less than a microsecond would be none."""


class TooLong(Exception):
    """The time is over."""


class _Limit:
    """Whether the signal raises now, and at what processor time of the main thread."""

    def __init__(self) -> None:
        self.holds = False
        self.is_handled = False
        self.ends = 0.0

    def over(self, _number: int, _frame: FrameType | None) -> None:
        """Handle the signal."""
        if not self.holds:
            return
        if (left := self.ends - time.thread_time()) > 0:
            signal.setitimer(signal.ITIMER_VIRTUAL, max(left, _LEAST))
            return
        self.holds = False
        raise TooLong


_limit = _Limit()


@contextmanager
def processor_limit(seconds: float) -> Iterator[None]:
    """Raise `TooLong` in this block once the main thread has used so many *seconds* of the processor in it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _limit.is_handled:
        signal.signal(signal.SIGVTALRM, _limit.over)
        _limit.is_handled = True
    try:
        _limit.ends = time.thread_time() + seconds
        _limit.holds = True
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        yield
    finally:
        _limit.holds = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
