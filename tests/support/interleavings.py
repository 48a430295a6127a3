"""Every order in which things can happen: code is run again and again, until all orders of its steps were tried.

    def run(choices: Choices) -> None:
        …                                                   # prepared as ever
        every_order({"feed": tells(), "client": connects()}, choices, check)
        assert …
    assert every_choice(run) == 462                         # so many orders

An actor is a generator: what it does up to its next ``yield`` is one step, during which nothing else happens, as on an
event loop. All choices of who is next are tried, depth first; each order begins afresh. An error says in which order.

Handles: code that is called. For code that awaits: `tests.support.stage`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

GO_ON: Final = "…"
"""The name of a choice that is nothing of its own; errors do not tell of it."""
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
        number, known = self._before[place] if place < len(self._before) else (0, names)
        if known != names:
            raise AssertionError(f"the same order leads elsewhere the second time: {known}, now {names}")
        self.taken.append((number, names))
        return number

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


def every_order(
    actors: Mapping[str, Iterator[object]], choices: Choices, check: Callable[[str], object] = lambda _name: None
) -> None:
    """Let all *actors* act, one at a time, each up to its next ``yield``; call *check* with who has, each time."""
    acting = dict(actors)
    while acting:
        names = tuple(acting)
        name = names[choices.among(names)]
        if next(acting[name], _ENDED) is _ENDED:
            del acting[name]
        check(name)
