"""The same with each of many, one request after the other: who is refused for himself is named, the others go on.

For what the API does of one device or token at a time. Each is whole by itself, and to do it again changes nothing, so
that who stops in the middle, or is stopped, begins again from the start.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

from provisioning.errors import Code, ConfigurationError
from provisioning.service_command import progress, say

_OF_ONE: Final = frozenset(
    {Code.DEVICE_UNKNOWN, Code.REVOCATION_FINAL, Code.LAST_ADMIN, Code.PROTECTED, Code.TOKEN_SPENT}
    | {Code.TOKEN_NUMBER_UNKNOWN, Code.SERIAL_UNKNOWN, Code.DEVICE_SUSPENDED}
)
"""Refusals that say something of the one who is named, and nothing of the others."""

WhichT = TypeVar("WhichT")


async def one_by_one(which: Sequence[WhichT], act: Callable[[WhichT], Awaitable[None]], done_to: str) -> None:
    """*act* on each of *which*, and say how many of them are *done_to* (``suspended``) if it ends before all are.

    Raises `ConfigurationError` at the end if any was refused; what else goes wrong ends it at once.
    """
    from provisioning.client.operator import RequestRefused  # Late: `provisioning.service_command`, rule 3.

    done = refused = 0
    with progress(done_to, len(which)) as advance:
        try:
            for each in which:
                try:
                    await act(each)
                except RequestRefused as refusal:
                    if len(which) == 1 or refusal.code not in _OF_ONE:
                        raise
                    say(f"fleet-provisioning: {refusal}")
                    refused += 1
                done += 1
                advance(1)
        finally:
            if 0 < done < len(which):
                say(f"fleet-provisioning: the first {done} of {len(which)} are {done_to}{_but(refused)}")
    if refused:
        raise ConfigurationError(f"{len(which) - refused} of {len(which)} are {done_to}{_but(refused)}")


def _but(refused: int) -> str:
    return f", but for {refused} named above" if refused else ""
