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

from tests.support.walk.elsewhere import Elsewhere
from tests.support.walk.fleet_oracle import FleetOracle, Rules
from tests.support.walk.reality import Ground, Reality
from tests.support.walk.session_oracle import Message, SessionOracle

PLAIN: Final = Rules("plain")
STRICT: Final = Rules("strict", replaces=True, repeats=False, grace=True)
BATCH: Final = Rules("batch")
GROUPS: Final = (PLAIN, STRICT, BATCH)
ASKED: Final = Rules("asked", asks=True)
"""An operator is asked, or has listed the device's key."""
MADE: Final = Rules("made", replaces=True)
"""A manufacturer's certificate is enough."""
VETOED: Final = Rules("vetoed")
"""A webhook is asked, too."""


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
    asking: dict[str, object] = field(default_factory=dict)
    """By name: what an operator was asked about it (`tests.support.walk.approval_operations`)."""
    makers: list[object] = field(default_factory=list)
    """The manufacturers (`tests.support.walk.evidence_operations`)."""
    origins: dict[str, str] = field(default_factory=dict)
    """By device: the manufacturer by whose certificate it came first."""
    elsewhere: Elsewhere | None = None
    """Another broker, once somebody has gone there."""
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


_OTHER_GROUND: Final = {"kill_worker", "lose_database", "set_clock"}
"""What takes several processes, PostgreSQL, or a clock that can be set."""
_ROUNDS: Final = 10
"""How many more devices a walk gets that insists on what was not possible."""
_BEGINNING: Final = ["arrive", "connect", "subscribe"] * 2


class WalkFailed(AssertionError):
    """Oracle and reality disagree."""

    def __init__(self, steps: Sequence[Step], told: Sequence[str], error: BaseException) -> None:
        lines = "\n".join(told)
        super().__init__(f"after {len(steps)} steps:\n{lines}\n{type(error).__name__}: {error}")
        self.steps = list(steps)
        self.last = told[-1]


def steps_of(seed: int, count: int) -> list[Step]:
    """Return the steps of a walk: the same ones for the same *seed*, and at first some that give it devices."""
    choices = random.Random(seed)
    names = sorted(OPERATIONS)
    chosen = choices.choices(names, [OPERATIONS[name][1] for name in names], k=count)
    return [Step(name, choices.getrandbits(32)) for name in (_BEGINNING + chosen)[:count]]


def walk_of_all(seed: int) -> list[Step]:
    """Return the steps of a walk, over one process, that has each operation once, shuffled."""
    choices = random.Random(seed)
    names = sorted(OPERATIONS.keys() - _OTHER_GROUND)
    choices.shuffle(names)
    return [Step(name, choices.getrandbits(32)) for name in _BEGINNING + names]


@dataclass(frozen=True)
class Way:
    """How a walk is taken."""

    compare: Callable[[World], None]
    """After each step."""
    compare_all: Callable[[World], None]
    """At the end."""
    tell: Callable[[str], None]
    ground: Ground = field(default_factory=Ground)
    insists: bool = False
    """A step that is not possible is tried again after each of the next ones, until it is."""


def walk(directory: Path, steps: Iterable[Step], way: Way) -> list[str]:
    """Take *steps* in a new world, and return what was not possible. Raises `WalkFailed`."""
    taken: list[Step] = []
    told: list[str] = []
    waiting: list[Step] = []
    with Reality(directory, way.ground) as reality:
        world = World(reality)
        for group in (*GROUPS, ASKED, MADE, VETOED):
            _found(world, group)

        def take(step: Step) -> bool:
            taken.append(step)
            function, _ = OPERATIONS[step.operation]
            world.repeats = False
            said = "?"
            try:
                said = function(world, random.Random(step.seed)) or ""
                if said:
                    way.compare(world)
            except BaseException as error:
                told.append(f"{len(taken):4} {step.operation}({step.seed}) {said}")
                if not isinstance(error, Exception):
                    raise
                raise WalkFailed(taken, told, error) from error
            if said:
                told.append(f"{len(taken):4} {step.operation} {said}")
                way.tell(told[-1])
            return bool(said)

        for step in steps:
            if not take(step):
                waiting.append(step)
            while way.insists and (again := next(filter(take, waiting), None)):
                waiting.remove(again)
        for number in range(_ROUNDS):
            if not (way.insists and waiting):
                break
            for name in ("arrive", "connect"):
                take(Step(name, number))
            while again := next(filter(take, waiting), None):
                waiting.remove(again)
        try:
            way.compare_all(world)
        except Exception as error:
            raise WalkFailed(taken, [*told, "at the end"], error) from error
    return [each.operation for each in waiting]


def _found(world: World, rules: Rules) -> None:
    ways = {
        BATCH.group: ["claim", "token"],
        ASKED.group: ["approval", "listed", "token"],
        MADE.group: ["manufacturer", "token"],
        VETOED.group: ["token+webhook"],
    }
    request = {"name": rules.group, "ways": ways.get(rules.group, ["token"])}
    more = {"new_key": "replace", "same_key_seconds": 0, "renewal_grace_seconds": 86400} if rules is STRICT else {}
    more |= {"new_key": "approve"} if rules is ASKED else {}
    more |= {"new_key": "replace"} if rules is MADE else {}
    more |= {"webhook_url": world.reality.webhook.url} if rules is VETOED else {}
    code, _ = world.reality.operate("/v1/groups", **request, **more)
    assert not code, code
