"""Splits a command's items into requests of some hundreds each: refused items are reported, the others are done.

A step is atomic: the service does all of it or nothing, and reports those for which it is impossible
(`provisioning.revocation.batch`). The request is then repeated without those. Repeating a step changes nothing, so an
interrupted command can simply be run again.

Whoever reads no further, as head does, does not end it, nor does a full disk under the output: of a thousand stolen
devices half would stay admitted. What could not be shown is an error when all is done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from provisioning.commands.service_command import progress, say
from provisioning.errors import ConfigurationError

STEP: Final = 500
"""Items per request: half of the maximum, so that it is answered soon."""

WhichT = TypeVar("WhichT", str, int)
FoundT = TypeVar("FoundT")


async def in_steps(
    which: Sequence[WhichT],
    act: Callable[[Sequence[WhichT]], Awaitable[FoundT]],
    show: Callable[[FoundT], None],
    done_to: str,
    *,
    goes_on: bool = True,
) -> int:
    """*act* on *which*, step by step, *show* the results, and return how many were refused and reported.

    *done_to* (``suspended``) is the word for the result. A refusal ends it unless it *goes_on*, and so does any other
    error; how far it has come is reported.
    """
    from provisioning.client.operator import RequestRefused  # Late: `service_command`, rule 3.

    done = under_way = 0
    telling = Telling()
    requests = _Requests(act, telling, stops=not goes_on or len(which) == 1)
    with progress(done_to, len(which)) as advance:
        try:
            while done < len(which):
                step = which[done : done + STEP]
                under_way = len(step)
                answers = await requests.about(step)
                done, under_way = done + len(step), 0
                with telling:
                    if telling.failed is None:
                        for found in answers:
                            show(found)
                    advance(len(step))
        except RequestRefused:
            under_way = 0  # Nothing of the step was done.
            raise
        finally:
            if done < len(which) and len(which) > 1:
                _say_how_far(done, under_way, len(which), f"{done_to}{_but(requests.refused)}")
    if telling.failed is not None:
        with telling:
            number = len(which) - requests.refused
            become = f"{_are(number)} {done_to}{_but(requests.refused)}"
            say(f"fleet-provisioning: {number} of {len(which)} {become}; not all is shown")
        raise telling.failed
    return requests.refused


class _Requests(Generic[WhichT, FoundT]):
    """Requests that are repeated without what they are refused for."""

    def __init__(self, act: Callable[[Sequence[WhichT]], Awaitable[FoundT]], telling: Telling, *, stops: bool) -> None:
        """Repeat them unless it *stops* at the first refusal."""
        self.refused = 0
        """How many were refused, and reported."""
        self._act: Callable[[Sequence[WhichT]], Awaitable[FoundT]] = act
        self._telling = telling
        self._stops = stops

    async def about(self, left: Sequence[WhichT]) -> list[FoundT]:
        """Return the answer about those in *left* that are not refused; nothing if all are."""
        from provisioning.client.operator import RequestRefused

        while left:
            try:
                return [await self._act(left)]
            except RequestRefused as refusal:
                named = {each.name for each in refusal.items}.intersection(left)
                if self._stops or not named:
                    raise
                with self._telling:
                    for each in refusal.items:
                        say(f"fleet-provisioning: {each.code}: {each.detail}")
                self.refused += len(named)
                left = [each for each in left if each not in named]
        return []


class Telling(contextlib.AbstractContextManager[None]):
    """A block that tells what was done: if that fails, it ends nothing."""

    failed: OSError | None = None
    """The first failure."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if not isinstance(error, OSError):
            return False
        self.failed = self.failed or error
        return True


def check_none_refused(refused: int, number: int, done_to: str) -> None:
    """Raise `ConfigurationError`, which ends the command with exit code 1, if any of *number* was *refused*."""
    if 0 < number == refused:
        raise ConfigurationError(f"none of {number} is {done_to}: why is said above")
    if refused:
        left = number - refused
        raise ConfigurationError(f"{left} of {number} {_are(left)} {done_to}{_but(refused)}")


def _say_how_far(done: int, under_way: int, number: int, become: str) -> None:
    told = f"the first {done} of {number} are {become}" if done else ""
    if under_way:
        follow = f", and perhaps the {under_way} that follow" if done else ""
        perhaps = follow or f"perhaps the first {under_way} of {number} are {become}"
        told += f"{perhaps}: to run it again does no harm"
    if told:
        say(f"fleet-provisioning: {told}")


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _but(refused: int) -> str:
    return f", but for {refused} named above" if refused else ""
