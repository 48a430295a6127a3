"""Many names, each of which may be in any of many groups, cut into statements whose size is bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_NAMES: Final = 50
"""For many more, PostgreSQL without statistics would read all of a table."""
_GROUPS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Chosen:
    """Names and groups of one statement; there are some of both."""

    groups: Sequence[str]
    names: Sequence[str]


def in_portions(groups: Sequence[str], names: Sequence[str]) -> Iterator[Chosen]:
    """Yield portions that have, together, each of *names* with each of *groups* once."""
    for first in range(0, len(groups), _GROUPS):
        for start in range(0, len(names), _NAMES):
            yield Chosen(groups[first : first + _GROUPS], names[start : start + _NAMES])
