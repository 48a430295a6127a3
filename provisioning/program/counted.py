"""How many there are of something, in words."""

from __future__ import annotations


def counted(count: int, what: str, plural: str = "") -> str:
    """Return *count* and the noun *what*: "1 device", "2 devices"; *plural* is for irregular ones."""
    return f"{count} {what if count == 1 else plural or f'{what}s'}"
