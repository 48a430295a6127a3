"""The signals of a running service, as events of its loop: SIGINT and SIGTERM to stop, SIGHUP to reload.

The supervisor of several has a loop of its own kind, and its own handlers: `provisioning.workers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import structlog

from provisioning.hangup import SETTLE_SECONDS, Hangups

log = structlog.get_logger(__name__)

_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, slots=True)
class ServiceSignals:
    """What is set when a signal comes."""

    hangups: Hangups
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """The service is to stop."""
    hangup: asyncio.Event = field(default_factory=asyncio.Event)
    """SIGHUP has come."""

    async def heed_hangups(self, reload: Callable[[], Awaitable[None]]) -> None:
        """Call *reload* for each SIGHUP, or stop with the terminal, until cancelled."""
        while True:
            await self.hangup.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            self.hangup.clear()
            if self.hangups.terminal_is_gone():
                log.info("the terminal is gone")
                self.stop.set()
                return
            await reload()


@contextlib.contextmanager
def service_signals() -> Iterator[ServiceSignals]:
    """Yield the signals, handled while the block runs."""
    signals = ServiceSignals(Hangups())
    loop = asyncio.get_running_loop()
    handled = dict.fromkeys(_STOP_SIGNALS, signals.stop)
    if signals.hangups.heeded:
        handled[signal.SIGHUP] = signals.hangup
    for number, event in handled.items():
        loop.add_signal_handler(number, event.set)
    try:
        yield signals
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
