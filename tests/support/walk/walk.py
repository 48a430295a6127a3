"""A walk: operations chosen at random, done to oracle and reality alike, which are compared after each.

Theory
------
A step is an operation and a number, the seed of all that the operation chooses: which device, which key, which
quality of service. So a walk is a list of steps, the same seeds give the same list, and a step does the same, as far
as it can, if others are left out: that is how a walk that fails is shortened (`tests.support.walk.shorten`).

Not hypothesis's RuleBasedStateMachine: an example there begins with processes of its own, a second each, and is tried
hundreds of times; what happens at once here is not the same each time, which it takes for a flaky test; and faults
that need a long history, in one store and one log, are found by long walks only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from tests.support.walk.fleet_oracle import FleetOracle, Rules
from tests.support.walk.reality import Reality
from tests.support.walk.session_oracle import Message, SessionOracle

PLAIN: Final = Rules("plain")
STRICT: Final = Rules("strict", replaces=True, repeats=False, grace=True)
BATCH: Final = Rules("batch")
GROUPS: Final = (PLAIN, STRICT, BATCH)


class Step(NamedTuple):
    """An operation, and the seed of what it chooses."""

    operation: str
    seed: int


@dataclass
class World:
    """Reality, and what the oracle knows of it."""

    reality: Reality
    fleet: FleetOracle = field(default_factory=FleetOracle)
    sessions: SessionOracle = field(default_factory=SessionOracle)
    claim: bytes = b""
    """Its key and certificate."""
    authorities: list[str] = field(default_factory=list)
    """The issuing CAs of a group's own line, the oldest first."""
    ended_authorities: list[str] = field(default_factory=list)
    payloads: int = 0
    taken: list[Message] = field(default_factory=list)
    """What the backend has got lately."""
    repeats: bool = False
    """The broker was killed in this step: what it had sent at QoS 1 may come again."""

    def payload(self) -> bytes:
        self.payloads += 1
        return b"%d" % self.payloads


Operation = Callable[[World, random.Random], str | None]
"""Does one thing to both, compares its outcome, and returns what it was; None: it is not possible now."""
OPERATIONS: Final[dict[str, tuple[Operation, int]]] = {}
"""By name: with how many of all shares it is chosen."""


def operation(shares: int) -> Callable[[Operation], Operation]:
    """Let walks choose this function, with *shares*."""

    def register(function: Operation) -> Operation:
        OPERATIONS[function.__name__] = function, shares
        return function

    return register


_BEGINNING: Final = ["arrive", "connect", "subscribe"] * 2


class WalkFailed(AssertionError):
    """Oracle and reality disagree."""

    def __init__(self, steps: Sequence[Step], told: Sequence[str], error: BaseException) -> None:
        lines = "\n".join(told)
        super().__init__(f"after {len(steps)} steps:\n{lines}\n{type(error).__name__}: {error}")
        self.steps = list(steps)


def steps_of(seed: int, count: int) -> list[Step]:
    """Return the steps of a walk: the same ones for the same *seed*, and at first some that give it devices."""
    choices = random.Random(seed)  # noqa: S311 - choices, not secrets
    names = sorted(OPERATIONS)
    chosen = choices.choices(names, [OPERATIONS[name][1] for name in names], k=count)
    return [Step(name, choices.getrandbits(32)) for name in (_BEGINNING + chosen)[:count]]


def walks_of_all(seed: int, count: int) -> list[list[Step]]:
    """Return *count* walks that have each operation once between them, shuffled."""
    choices = random.Random(seed)  # noqa: S311 - choices, not secrets
    names = sorted(OPERATIONS)
    choices.shuffle(names)
    return [
        [Step(name, choices.getrandbits(32)) for name in _BEGINNING + names[first::count]] for first in range(count)
    ]


def walk(
    directory: Path,
    steps: Iterable[Step],
    compare: Callable[[World], None],
    compare_all: Callable[[World], None],
    tell: Callable[[str], None],
) -> int:
    """Take *steps* in a new world, *compare* after each, and *compare_all* at the end.

    Returns how many were possible. Raises `WalkFailed`.
    """
    taken: list[Step] = []
    told: list[str] = []
    possible = 0
    with Reality(directory) as reality:
        world = World(reality)
        for group in GROUPS:
            _found(world, group)
        for number, step in enumerate(steps):
            taken.append(step)
            function, _ = OPERATIONS[step.operation]
            world.repeats = False
            said = "?"
            try:
                said = function(world, random.Random(step.seed)) or ""  # noqa: S311 - choices
                if said:
                    compare(world)
            except BaseException as error:
                told.append(f"{number:4} {step.operation}({step.seed}) {said}")
                if not isinstance(error, Exception):
                    raise
                raise WalkFailed(taken, told, error) from error
            if said:
                possible += 1
                told.append(f"{number:4} {step.operation} {said}")
                tell(told[-1])
        try:
            compare_all(world)
        except Exception as error:
            raise WalkFailed(taken, [*told, "at the end"], error) from error
    return possible


def _found(world: World, rules: Rules) -> None:
    request = {"name": rules.group, "ways": ["claim", "token"] if rules is BATCH else ["token"]}
    more = {"new_key": "replace", "same_key_seconds": 0, "renewal_grace_seconds": 86400} if rules is STRICT else {}
    code, _ = world.reality.operate("/v1/groups", **request, **more)
    assert not code, code
