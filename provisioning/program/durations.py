"""Durations in settings: a number with its unit, or ISO 8601.

A number alone is refused: `crl_life = 5` may mean days or seconds, and a wrong guess would go unnoticed until the first
relying party finds an expired CRL (docs/decisions/0148). A setting that takes plain numbers has the unit in its name,
as in ``crl_debounce_seconds``; an option has it in its help.
"""

from __future__ import annotations

import itertools
import re
from datetime import timedelta
from typing import Final

REMEDY: Final = "write a duration with its unit, such as 30d, 12h, 5m or 90s, or as ISO 8601 has them, such as P30D"
SECONDS_OF: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_BY_SIZE: Final = "dhms"
"""Without weeks: nobody writes 52 weeks and two days."""
_SHORT: Final = re.compile(rf"(\d{{1,12}}(?:\.\d{{1,6}})?)\s*([{''.join(SECONDS_OF)}])")
_ISO_8601: Final = re.compile(r"[+-]?P\d.*|[+-]?PT\d.*")


def seconds_in(text: str) -> float | None:
    """Return the seconds in a number with its unit, such as ``12h``; None if it is something else."""
    found = _SHORT.fullmatch(text)
    return None if found is None else float(found[1]) * SECONDS_OF[found[2]]


def out_of_bounds(field: str, given: timedelta, least: timedelta, most: timedelta) -> str:
    """Return the error text for *given*, out of bounds for *field*, whose name says that it is in seconds."""
    return f"{field} must be {_told(least)} to {_told(most)}, and is {_told(given)}"


def shown(seconds: int) -> str:
    """Return *seconds* in the largest unit of which they are a whole number: ``7d``."""
    unit = next(each for each in _BY_SIZE if not seconds % SECONDS_OF[each]) if seconds else "s"
    return f"{seconds // int(SECONDS_OF[unit])}{unit}"


def in_two_units(seconds: float) -> str:
    """Return *seconds* for people, in the two largest units that fit: ``3d 4h``, ``1m 37s``, ``0.4s``."""
    for unit, smaller in itertools.pairwise(_BY_SIZE):
        size, part = int(SECONDS_OF[unit]), int(SECONDS_OF[smaller])
        if seconds >= size:
            return f"{int(seconds) // size}{unit} {int(seconds) % size // part}{smaller}"
    return f"{seconds:g}s"


def _told(time: timedelta) -> str:
    """Return the seconds of *time*, and the same in the largest unit of which it is a whole number."""
    seconds = int(time.total_seconds())
    short = shown(seconds)
    return str(seconds) if short == f"{seconds}s" else f"{seconds} ({short})"


def with_its_unit(value: object) -> object:
    """Return *value* as pydantic parses a duration; raise `ValueError` if it has no unit."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        text = value.strip()
        if (seconds := seconds_in(text)) is not None:
            try:
                return timedelta(seconds=seconds)
            except OverflowError:
                raise ValueError("is longer than anybody waits") from None
        if _ISO_8601.fullmatch(text):
            return text  # Pydantic parses the rest.
    raise ValueError(REMEDY)
