"""How often each of several things happened, in words."""

from __future__ import annotations

from collections.abc import Iterable

from provisioning.program.counted import counted


def each_time(happened: Iterable[tuple[str, int]]) -> str:
    """Return "2 times refused, 1 time late" for what *happened*, and how often."""
    return ", ".join(f"{counted(count, 'time')} {what}" for what, count in happened)
