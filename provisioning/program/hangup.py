"""SIGHUP: reload the settings, or end with the terminal.

Theory
------
An operator or a service manager sends SIGHUP after changing the settings. The kernel sends it, too, when the terminal
in which the service was started is closed, and then the service should end. The two can be distinguished afterwards:
the process had a terminal when it started, and no longer has one.

Rules
-----
1. If SIGHUP is ignored when the process starts (``nohup``), it stays ignored.
2. A terminal disappears a moment after its signal: it is checked after `SETTLE_SECONDS`.
"""

from __future__ import annotations

import os
import signal
from typing import Final

SETTLE_SECONDS: Final = 0.2
_TERMINAL: Final = "/dev/tty"


class Hangups:
    """What SIGHUP means in this process, depending on how it was started."""

    def __init__(self) -> None:
        """Determine how the process was started."""
        self.heeded: Final = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        self._had_terminal: Final = _has_terminal()

    def terminal_is_gone(self) -> bool:
        """Whether the process has lost the terminal in which it was started."""
        return self._had_terminal and not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
