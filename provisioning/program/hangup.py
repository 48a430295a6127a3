"""SIGHUP: read the settings anew, or end with the terminal.

Theory
------
Who sends SIGHUP by hand, or a service manager, has changed the settings. The kernel sends it, too, when the terminal in
which the service was started is closed, and then it is meant to end. Which of both it was is seen afterwards: the
process had a terminal when it started, and has none any more.

Rules
-----
1. Where SIGHUP is ignored when the process starts (``nohup``), it stays ignored.
2. A terminal is gone a moment after its signal has come: `SETTLE_SECONDS`, then it is looked for.
"""

from __future__ import annotations

import os
import signal
from typing import Final

SETTLE_SECONDS: Final = 0.2
_TERMINAL: Final = "/dev/tty"


class Hangups:
    """What SIGHUP means in this process, as it was started."""

    def __init__(self) -> None:
        """Look at how the process was started."""
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
