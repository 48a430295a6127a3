"""How large the payloads of a benchmark are: one size, any between two, or several by weight.

Handles: ``256``; ``64-1024``, each as often; ``64:70,1024:25,65536:5``, so many of each, by weight.

Rules
-----
1. The same benchmark draws the same sizes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Final

LARGEST: Final = 1_000_000
_MOST_SIZES: Final = 100
_MOST_WEIGHT: Final = 1_000_000
_RANGE: Final = re.compile(r"(\d{1,9})-(\d{1,9})")
_WEIGHED: Final = re.compile(r"(\d{1,9}):(\d{1,9})")
_WORDS: Final = "write 256, 64-1024, or 64:70,1024:30, SIZE:WEIGHT"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes in bytes: any of *between*, or those in *choices*, each as often as its weight says."""

    between: tuple[int, int]
    choices: tuple[int, ...] = ()
    weights: tuple[int, ...] = ()
    """Added up: the last is the sum of all."""

    def draw(self, random: Random) -> int:
        """Return the size of the next payload."""
        if self.choices:
            return random.choices(self.choices, cum_weights=self.weights)[0]
        least, most = self.between
        return least if least == most else random.randint(least, most)

    def __str__(self) -> str:
        least, most = self.between
        return str(least) if least == most else f"{least}-{most}"


def always(size: int) -> Sizes:
    """Return that each payload has *size* bytes."""
    return Sizes((size, size))


USUAL: Final = always(256)


def sizes_in(text: str) -> Sizes:
    """Return the sizes that *text* says; raise `ValueError` with what to write."""
    if text.isascii() and text.isdigit():
        return _checked(text, always(int(text)))
    if (match := _RANGE.fullmatch(text)) is not None:
        least, most = int(match[1]), int(match[2])
        if least > most:
            raise ValueError(f"-s {text}: the smaller one comes first, {most}-{least}")
        return _checked(text, Sizes((least, most)))
    parts = text.split(",")
    pairs = [match for part in parts if (match := _WEIGHED.fullmatch(part.strip())) is not None]
    if len(pairs) < len(parts) or len(parts) > _MOST_SIZES:
        raise ValueError(f"-s {text[:80]!r} is no size: {_WORDS}")
    choices, weights = tuple(int(pair[1]) for pair in pairs), [int(pair[2]) for pair in pairs]
    if not all(0 < weight <= _MOST_WEIGHT for weight in weights):
        raise ValueError(f"-s {text}: a weight is 1 to {_MOST_WEIGHT}; leave out a size that nothing has")
    return _checked(text, Sizes((min(choices), max(choices)), choices, tuple(accumulate(weights))))


def _checked(text: str, sizes: Sizes) -> Sizes:
    if sizes.between[1] > LARGEST:
        raise ValueError(f"-s {text}: a payload has {LARGEST} bytes at most")
    return sizes
