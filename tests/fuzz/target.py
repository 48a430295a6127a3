"""A target: a function of bytes that raises where it finds a fault, seeds to begin with, and how they are changed.

Rules
-----
1. A target catches the errors that the code under test documents, and no others: any other is a finding.
2. It compares, wherever there is something to compare with: the slow twin, another library, the same bytes cut
   elsewhere. What differs is a `Disagreement`.
3. It does the same each time it is given the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise


class Disagreement(Exception):
    """Two ways to do the same have had different results."""


class TooSlow(Exception):
    """An input takes more CPU time than one of its length may."""


@dataclass(frozen=True, slots=True)
class Target:
    """One thing that is fuzzed."""

    name: str
    check: Callable[[bytes], object]
    """Raises what is no documented error."""
    seeds: Sequence[bytes]
    is_der: bool = False
    """Whether the mutator is one that knows DER (`tests.fuzz.der`)."""
    words: Sequence[bytes] = ()
    """What a grammar is made of, to be put into inputs."""
    longest: int = 1024
    seconds: float = 5.0
    """The most CPU time that one input may take; the code is slowed down by what watches its branches."""

    around: Callable[[], AbstractContextManager[object]] = nullcontext
    """What is entered before the first input, and left after the last."""

    def __call__(self, data: bytes) -> None:
        begin = time.process_time()
        self.check(data)
        taken = time.process_time() - begin
        if taken > self.seconds:
            raise TooSlow(f"{taken:.1f} s of CPU time for {len(data)} bytes")


def agree(what: str, one: object, other: object) -> None:
    """Raise `Disagreement` if *one* is not *other*."""
    if one != other:
        raise Disagreement(f"{what}: {one!r} is not {other!r}")


def cuts(data: bytes) -> list[bytes]:
    """Return *data* in pieces: byte for byte if it is short, else at places that depend on its content."""
    if len(data) <= 64:
        return [data[place : place + 1] for place in range(len(data))]
    places = sorted({0, len(data), *((each * 7919 + data[-1]) % len(data) for each in range(12))})
    return [data[begin:end] for begin, end in pairwise(places)]
