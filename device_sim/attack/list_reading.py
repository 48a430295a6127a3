"""A broker that is told to read a revocation list, and has not read it when the command has ended (``kill -HUP``).

Theory
------
Where revocations go by a file and a command, the command's end is no sign that they are in force. So who has waited in
vain as long as the broker may take waits on, until it can be seen that the list was read: another device is revoked
behind the one in question, and whoever is revoked later is refused later. What comes in that time is too late, and is
judged so, with how late; what has not come by then never would.

Rules
-----
1. This excuses nothing: how long a revocation may take is said by ``[limits]`` of the --capabilities file.
2. Where a list is never read it ends after `LONGEST` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from device_sim.attack.target import SigningRegistrar, Target
from device_sim.attack.verdict import Seen

if TYPE_CHECKING:
    from device_sim.attack.scene import Scene

LONGEST = 15.0
_AGAIN: Final = 0.2
_AT_ONCE: Final = 0.5
"""Seconds in which a broker that has read its list closes who is on it."""


async def until_read(scene: Scene, wait: Callable[[float], Awaitable[Seen]], seen: Seen, started: float) -> Seen:
    """Return *seen*, or, if nobody was put out and a list is still to be read, what *wait* sees until it is.

    It is noted how long that took, from *started* on.
    """
    registrar = scene.target.registrar
    if not isinstance(registrar, SigningRegistrar) or registrar.told_by is None:
        return seen
    if seen.got_in:
        seen = await _seen_until_read(scene, wait)
    waited = time.monotonic() - started
    if not seen.got_in or waited >= LONGEST:  # Else it has read the list, and leaves alone who is connected.
        scene.target.waited = max(scene.target.waited, waited)
    return seen


async def _seen_until_read(scene: Scene, wait: Callable[[float], Awaitable[Seen]]) -> Seen:
    ending = asyncio.ensure_future(wait(LONGEST))
    reading = asyncio.create_task(_has_read(scene), name="revocation list")
    try:
        await asyncio.wait((ending, reading), return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait((ending,), timeout=_AT_ONCE)
    finally:
        for task in (ending, reading):
            task.cancel()
        await asyncio.gather(ending, reading, return_exceptions=True)
    return await wait(0.0) if ending.cancelled() else ending.result()


async def _has_read(scene: Scene) -> None:
    """Return when a device that is revoked now is refused, or has not been for too long."""
    later = await scene.device()
    await scene.target.registrar.revoke(later)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LONGEST):
            while (await scene.show(later)).got_in:  # noqa: ASYNC110 - nothing but trying tells
                await asyncio.sleep(_AGAIN)


def what_was_waited_for(target: Target) -> str:
    """Return how long the broker took to go by its revocation list, if that is worth a word."""
    registrar = target.registrar
    limits = target.capabilities.limits
    if not isinstance(registrar, SigningRegistrar) or target.waited <= limits.revocation_p95:
        return ""
    told = f"`{registrar.told_by}` had ended" if registrar.told_by else "the list was written"
    return (
        f"waited {target.waited:.1f} s at most, after {told}, for the broker to go by its revocation list; it may take "
        f"{limits.revocation:g} s, {limits.revocation_p95:g} s with 19 of 20: revocation and revocation_p95 below "
        "[limits] of --capabilities"
    )
