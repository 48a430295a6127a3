"""How often something happened, in words."""

from __future__ import annotations


def times(count: int) -> str:
    """Return "1 time", "2 times"."""
    return f"{count} time" + ("" if count == 1 else "s")
