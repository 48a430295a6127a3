"""What systemd is told about a service: that it is ready, that it stops, and that it is not stuck (sd_notify(3)).

Theory
------
systemd names a datagram socket in NOTIFY_SOCKET to what it starts with ``Type=notify``. A start then lasts until the
service accepts connections: ``systemctl start`` fails with the service, and what is ordered after it finds it ready.
With ``WatchdogSec=`` it also expects a sign of life, at least that often, and otherwise ends the process with SIGABRT
and starts it again (docs/decisions/0220-systemd-notify-and-journal.md).

Rules
-----
1. The sign of life comes from what does the work: the event loop, or the supervisor's wait. A thread of its own would
   still give it when they hang.
2. The variables are taken out of the environment: children are not to speak for the service.
3. Without a manager nothing is said, and a manager that does not listen delays or breaks nothing.

Does not handle: a worker that hangs (`provisioning.service.workers`: the supervisor gives the sign); descriptors that
systemd passes (socket activation).
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import socket
from collections.abc import MutableMapping

_PATIENCE_SECONDS = 0.5
_BEATS = 3
"""Signs of life within the time that systemd allows: a loop that is late by half of that time is not stuck."""


class ServiceManager:
    """Whoever started this process and wants to hear about it, or nobody."""

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        """*address* is its socket's, with ``@`` for an abstract one; *watchdog_seconds*: how long silence is life."""
        self._address = address
        self.beat_seconds = None if address is None or not watchdog_seconds else watchdog_seconds / _BEATS
        """The pause between signs of life; None: none is expected."""

    @classmethod
    def named_in(cls, environment: MutableMapping[str, str]) -> ServiceManager:
        """Return the manager that *environment* names, and take its variables out (rule 2)."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds, watched = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):
            return cls()
        is_meant = watched in {"", str(os.getpid())} and microseconds.isascii() and microseconds.isdecimal()
        return cls(address, int(microseconds) / 1e6 if is_meant else None)

    def ready(self) -> None:
        """Say that connections are accepted."""
        self._say("READY=1")

    def stopping(self) -> None:
        """Say that the service ends."""
        self._say("STOPPING=1")

    def beat(self) -> None:
        """Give the sign of life, if one is expected."""
        if self.beat_seconds is not None:
            self._say("WATCHDOG=1")

    async def keep_watch(self) -> None:
        """Give the sign of life as often as it is expected, until cancelled.

        What the process was doing is written to standard error, function by function, if systemd ends it (SIGABRT).
        """
        if self.beat_seconds is None:
            return
        show_where_it_hangs()
        while True:
            self.beat()
            await asyncio.sleep(self.beat_seconds)

    def _say(self, text: str) -> None:
        if self._address is None:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
            speaker.settimeout(_PATIENCE_SECONDS)
            speaker.sendto(text.encode(), address)


def show_where_it_hangs() -> None:
    """Have SIGABRT write each thread's functions and lines to standard error: no values, which may be secret."""
    with contextlib.suppress(OSError, ValueError):  # Standard error is closed, or has no descriptor.
        faulthandler.enable()


NOBODY = ServiceManager()
