"""What is done to the stand of a soak, one fault at a time: each lasts for seconds, and is over when it returns.

Rules
-----
1. A fault is the `Weather`'s business: while it lasts, and for a while afterwards, refusals are excused.
2. Only what the two programs must survive is done: nothing here damages a file.
3. Those that kill our own processes (`KILLING`) are apart: what grows is seen in a process that lives long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from typing import Final, Protocol

from soak_stand import Program, Stand, fill


class Fault(Protocol):
    """One of these functions."""

    __name__: str

    def __call__(self, stand: Stand, /) -> Awaitable[None]:
        """Do it."""


_SECONDS: Final = 5.0
_HOUR: Final = 3600.0
_HOUR_LASTS: Final = 35.0
"""Both programs look at their clocks every 15 seconds where they do not have to know at once."""
_LASTING: Final = 15.0
_HOUR_IS_SEEN: Final = 45.0
_READY_SECONDS: Final = 60.0


async def kill_broker(stand: Stand) -> None:
    """SIGKILL, and a start."""
    await stand.broker.kill()


async def kill_service(stand: Stand) -> None:
    """SIGKILL, and a start."""
    await stand.service.kill()


async def stop_broker(stand: Stand) -> None:
    """SIGSTOP for some seconds."""
    await stand.broker.pause(_SECONDS)


async def stop_service(stand: Stand) -> None:
    """SIGSTOP for some seconds."""
    await stand.service.pause(_SECONDS)


async def cut_feed(stand: Stand) -> None:
    """Broker and service do not reach each other, while devices reach both."""
    stand.cable.cut()
    await asyncio.sleep(2 * _SECONDS)
    stand.cable.mend()


async def fill_disk(stand: Stand) -> None:
    """Everybody's disk is full, and the stores' logs have no room of their own left, in which they could go on."""
    assert stand.volume is not None  # noqa: S101 - `faults` has seen to that.
    await asyncio.to_thread(stand.empty_logs)
    ballast = await asyncio.to_thread(fill, stand.volume)
    try:
        await asyncio.sleep(2 * _SECONDS)
    finally:
        ballast.unlink()


async def kill_postgresql(stand: Stand) -> None:
    """SIGKILL, and a start at once."""
    assert stand.server is not None  # noqa: S101 - `faults` has seen to that.
    await asyncio.to_thread(stand.server.kill_and_restart)


async def broker_an_hour_ahead(stand: Stand) -> None:
    """Set the broker's clock an hour ahead, and back."""
    await _set_for_a_while(stand.broker, _HOUR)


async def broker_an_hour_behind(stand: Stand) -> None:
    """Set the broker's clock an hour back, and right."""
    await _set_for_a_while(stand.broker, -_HOUR)


async def service_an_hour_behind(stand: Stand) -> None:
    """Set the service's clock an hour back, and right."""
    await _set_for_a_while(stand.service, -_HOUR)


async def service_an_hour_ahead(stand: Stand) -> None:
    """Set the service's clock an hour ahead, and back."""
    await _set_for_a_while(stand.service, _HOUR)


async def slew(stand: Stand) -> None:
    """Both clocks go off by some seconds, in different directions, and come back."""
    for seconds in (1, 2, 3, 2, 1, 0):
        stand.service.clock.set(seconds)
        stand.broker.clock.set(-seconds)
        await asyncio.sleep(1)


async def _set_for_a_while(program: Program, ahead: float) -> None:
    program.clock.set(ahead)
    try:
        await asyncio.sleep(_HOUR_LASTS)
    finally:
        program.clock.set(0)


def lasting(fault: Fault) -> float:
    """Return for how many seconds the consequences of *fault* may be seen after its end.

    What was certified by a clock that was an hour ahead is replaced when the clock is looked at, and then fetched.
    """
    return _HOUR_IS_SEEN if "hour" in fault.__name__ else _LASTING


KILLING: Final[Sequence[Fault]] = (kill_broker, kill_service)


def faults(stand: Stand, *, hours: bool) -> Sequence[Fault]:
    """Return those that can be done to *stand*, without `KILLING`; *hours*: set clocks by an hour, too."""
    chosen: list[Fault] = []
    if stand.server is not None:
        chosen += [kill_postgresql]
    if stand.volume is not None:
        chosen += [fill_disk]
    if stand.service.clock.library is not None:
        chosen += [slew]
        if hours:
            chosen += [broker_an_hour_ahead, broker_an_hour_behind, service_an_hour_behind, service_an_hour_ahead]
    return [*chosen, cut_feed, stop_broker, stop_service]


async def ready_again(stand: Stand) -> None:
    """Wait until the broker admits newcomers; raise TimeoutError if it does not soon."""
    deadline = time.monotonic() + _READY_SECONDS
    while not (await asyncio.to_thread(stand.status)).get("newcomers_admitted"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the broker admits nobody {_READY_SECONDS:.0f} s after a fault")
        await asyncio.sleep(0.2)
