"""SIGTERM ends a command as Ctrl-C does, unless whoever started it has SIGTERM ignored."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator

import pytest

from provisioning.program import termination


@pytest.fixture
def with_handler() -> Iterator[Callable[[signal.Handlers], None]]:
    before = signal.getsignal(signal.SIGTERM)

    def handle(handler: signal.Handlers) -> None:
        signal.signal(signal.SIGTERM, handler)

    yield handle
    signal.signal(signal.SIGTERM, before)


async def command(said: list[str]) -> None:
    with termination.cancelled_by_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(3):  # A signal's handler runs, and then what it has the loop call.
            await asyncio.sleep(0)
        said.append("done")


def test_sigterm_cancels_the_command(with_handler: Callable[[signal.Handlers], None]) -> None:
    with_handler(signal.SIG_DFL)
    said: list[str] = []
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(command(said))
    assert said == []
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_who_had_sigterm_ignored_is_obeyed(with_handler: Callable[[signal.Handlers], None]) -> None:
    with_handler(signal.SIG_IGN)
    said: list[str] = []
    asyncio.run(command(said))
    assert said == ["done"]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
