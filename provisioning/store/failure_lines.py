"""The lines that say why the store cannot be used, or a CRL not be made: each reason at once, then once a minute.

While a database is gone, every request and each part of the service finds that out for itself, with the same words: a
fleet that tries again, and what looks into the store every few seconds, would fill the log with them.

Rules
-----
1. A reason that has not been logged within the last minute is logged at once: what changes is seen.
2. No more than `_REASONS` are remembered. Where the server's words are different each time, each is logged.
3. It is asked from several threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from provisioning.program.once_a_minute import OnceAMinute

_REASONS: Final = 32


class FailureLines:
    """Which reasons have been logged, and how often each has been there since."""

    def __init__(self) -> None:
        self._lines: Final[OrderedDict[str, OnceAMinute]] = OrderedDict()
        self._lock: Final = threading.Lock()

    def failed(self, reason: str, now: float) -> int:
        """Count *reason*; return how many times the line stands for that is to be logged now, 0: none is."""
        with self._lock:
            line = self._lines.setdefault(reason, OnceAMinute())
            self._lines.move_to_end(reason)
            if len(self._lines) > _REASONS:
                self._lines.popitem(last=False)
            return line.happened(now)
