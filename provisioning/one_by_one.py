"""The same with each of many, in a request of its own: who is refused for himself is named, the others go on.

For what the API does of one device or token at a time. Each is whole by itself, and to do it again changes nothing, so
that who stops in the middle, or is stopped, begins again from the start. A few are under way at a time, for the service
stores together what comes together; what they say is told in the order that was asked.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from provisioning.errors import Code, ConfigurationError
from provisioning.service_command import progress, say

_OF_ONE: Final = frozenset(
    {Code.DEVICE_UNKNOWN, Code.REVOCATION_FINAL, Code.LAST_ADMIN, Code.PROTECTED, Code.TOKEN_SPENT}
    | {Code.TOKEN_NUMBER_UNKNOWN, Code.SERIAL_UNKNOWN, Code.DEVICE_SUSPENDED}
)
"""Refusals that say something of the one who is named, and nothing of the others."""

AT_ONCE: Final = 8
"""Requests under way: with more the service gets no quicker, and others want it too."""

WhichT = TypeVar("WhichT")
FoundT = TypeVar("FoundT")


async def one_by_one(
    which: Sequence[WhichT],
    act: Callable[[WhichT], Coroutine[Any, Any, FoundT]],
    show: Callable[[FoundT], None],
    done_to: str,
) -> None:
    """*act* on each of *which*, *show* what comes of it; say how many are *done_to* (``suspended``) if it ends early.

    Raises `ConfigurationError` at the end if any was refused; what else goes wrong ends it at once.
    """
    from provisioning.client.operator import RequestRefused  # Late: `provisioning.service_command`, rule 3.

    done = refused = 0
    waiting = iter(which)
    under_way = deque(asyncio.ensure_future(act(each)) for each in itertools.islice(waiting, AT_ONCE))
    with progress(done_to, len(which)) as advance:
        try:
            while under_way:
                try:
                    show(await under_way[0])
                except RequestRefused as refusal:
                    if len(which) == 1 or refusal.code not in _OF_ONE:
                        raise
                    say(f"fleet-provisioning: {refusal}")
                    refused += 1
                under_way.popleft()
                under_way.extend(asyncio.ensure_future(act(each)) for each in itertools.islice(waiting, 1))
                done += 1
                advance(1)
        finally:
            for each in under_way:
                each.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            if 0 < done < len(which):
                say(f"fleet-provisioning: the first {done} of {len(which)} are {done_to}{_but(refused)}")
    if refused:
        raise ConfigurationError(f"{len(which) - refused} of {len(which)} are {done_to}{_but(refused)}")


def _but(refused: int) -> str:
    return f", but for {refused} named above" if refused else ""
