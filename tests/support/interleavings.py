"""Every order in which things can happen: code is run again and again, until all orders of its steps were tried.

    def run(choices: Choices) -> None:
        …                                                   # prepared as ever
        every_order({"feed": tells(), "client": connects()}, choices, check)
        assert …
    assert every_choice(run) == 462                         # so many orders

An actor is a generator: what it does up to its next ``yield`` is one step, during which nothing else happens, as on an
event loop. It may yield a condition, without which its next step cannot come; if that never holds, it never does. With
a `TurnedLoop` each round of the loop is a step, too. All choices of who is next are tried, depth first; each order
begins afresh. An error says in which order.

Where the orders are too many, `some_orders` draws: in `make test` a few, always the same, and in `make test-thorough`
many that nobody has tried before.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Final

from tests.support.examples import IS_THOROUGH
from tests.support.turned_loop import TurnedLoop

GO_ON: Final = "…"
"""The name of a choice that is nothing of its own; errors do not tell of it."""
LOOP: Final = "the loop"
_MOST: Final = 1_000_000
_ENDED: Final = object()

Taken = list[tuple[int, tuple[str, ...]]]
"""The number of each choice, and the names of all that there were."""


class Choices:
    """Repeats the choices of *before*, and then takes the first of each."""

    def __init__(self, before: Taken) -> None:
        self._before = before
        self.taken: Final[Taken] = []

    def among(self, names: tuple[str, ...]) -> int:
        """Return the number of the next choice among *names*."""
        place = len(self.taken)
        number, known = self._before[place] if place < len(self._before) else (self._new(names), names)
        if known != names:
            raise AssertionError(f"the same order leads elsewhere the second time: {known}, now {names}")
        self.taken.append((number, names))
        return number

    def _new(self, _names: tuple[str, ...]) -> int:
        return 0

    @property
    def order(self) -> str:
        """What has happened, in order."""
        return " · ".join(names[number] for number, names in self.taken if names[number] != GO_ON)


def every_choice(run: Callable[[Choices], None], most: int = _MOST) -> int:
    """Call *run* once for every sequence of choices; return how many there were. *most* is a limit against mistakes."""
    before: Taken = []
    for tried in range(1, most + 1):
        choices = Choices(before)
        try:
            run(choices)
        except BaseException as error:
            error.add_note(f"in order {tried}: {choices.order}")
            raise
        before = choices.taken
        while before and before[-1][0] + 1 == len(before[-1][1]):
            before.pop()
        if not before:
            return tried
        number, names = before.pop()
        before.append((number + 1, names))
    raise AssertionError(f"more than {most} orders")


class Drawn(Choices):
    """Takes any of each: some names come sooner, in each order others, so that a long way is also gone first."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__([])
        self._draw = draw
        self._weights: dict[str, int] = {}

    def _new(self, names: tuple[str, ...]) -> int:
        weights = [self._weights.setdefault(name, self._draw.choice((1, 4, 16))) for name in names]
        return self._draw.choices(range(len(names)), weights)[0]


def some_orders(run: Callable[[Choices], None], few: int, many: int) -> None:
    """Call *run* with *few* orders, always the same; in `make test-thorough` with *many* others."""
    first = random.randrange(10**9) if IS_THOROUGH else 0
    for seed in range(first, first + (many if IS_THOROUGH else few)):
        choices = Drawn(random.Random(seed))
        try:
            run(choices)
        except BaseException as error:
            error.add_note(f"in the order drawn with seed {seed}: {choices.order}")
            raise


def every_order(
    actors: Mapping[str, Iterator[object]],
    choices: Choices,
    check: Callable[[str], object] = lambda _name: None,
    loop: TurnedLoop | None = None,
) -> None:
    """Let all *actors* act, one at a time, each up to its next ``yield``; call *check* with who has, each time.

    With a *loop* its rounds are steps like theirs, as long as it has something to do, and they act as if called by it.
    """
    with contextlib.ExitStack() as stack:
        for each in actors.values():
            if isinstance(each, Generator):
                stack.callback(each.close)
        _act(dict(actors), choices, check, loop)


def _act(
    acting: dict[str, Iterator[object]], choices: Choices, check: Callable[[str], object], loop: TurnedLoop | None
) -> None:
    awaited: dict[str, object] = {}
    while True:
        names = tuple(name for name in acting if _may_act(awaited.get(name)))
        if loop is not None and loop.is_ready:
            names = *names, LOOP
        if not names:
            return
        name = names[choices.among(names)]
        if loop is None:
            awaited[name] = next(acting[name], _ENDED)
        elif name == LOOP:
            loop.go_round()
        else:
            with loop.inside():
                awaited[name] = next(acting[name], _ENDED)
        if awaited.get(name) is _ENDED:
            del acting[name]
        check(name)


def _may_act(condition: object) -> bool:
    return bool(condition()) if callable(condition) else True
