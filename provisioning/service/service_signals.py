"""The signals of a running service, as events of its loop: SIGINT and SIGTERM to stop, SIGHUP to reload.

The process ends at most `STOP_SECONDS` after a stop, whatever blocks it: a token that does not answer during a
signature, a database or a disk (`provisioning.program.ending`, docs/decisions/0169-shutdown-has-a-time-limit.md).

The supervisor of several workers has no event loop, and its own handlers: `provisioning.service.workers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import structlog

from provisioning.program.ending import Ending
from provisioning.program.hangup import SETTLE_SECONDS, Hangups

log = structlog.get_logger(__name__)

STOP_SECONDS: Final = 25.0
"""From the signal to the end: less than a service manager (deploy/systemd: 30) or the workers' supervisor waits."""
_GIVEN_UP: Final = (
    "a token, the database or a disk has not answered: what was under way is undone, or, if it was being committed, "
    "perhaps done; nobody was told it"
)
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class ServiceSignals:
    """What is set when a signal comes."""

    hangups: Hangups
    ending: Ending
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """The service is to stop."""
    hangup: asyncio.Event = field(default_factory=asyncio.Event)
    """SIGHUP has come."""

    def end(self) -> None:
        """Have the service stop, with a time limit; later calls have no effect: they would extend the limit."""
        if not self.stop.is_set():
            self.stop.set()
            self.ending.within(STOP_SECONDS, 1)

    async def heed_hangups(self, reload: Callable[[], Awaitable[None]]) -> None:
        """Call *reload* for each SIGHUP, or stop if the terminal is gone, until cancelled."""
        while True:
            await self.hangup.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            self.hangup.clear()
            if self.hangups.terminal_is_gone():
                log.info("the terminal is gone")
                self.end()
                return
            await reload()


@contextlib.contextmanager
def service_signals() -> Iterator[ServiceSignals]:
    """Yield the signals, handled while the block runs."""
    signals = ServiceSignals(Hangups(), Ending(log, _GIVEN_UP))
    loop = asyncio.get_running_loop()
    handled: dict[signal.Signals, Callable[[], None]] = dict.fromkeys(_STOP_SIGNALS, signals.end)
    if signals.hangups.heeded:
        handled[signal.SIGHUP] = signals.hangup.set
    for number, heed in handled.items():
        loop.add_signal_handler(number, heed)
    try:
        yield signals
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
