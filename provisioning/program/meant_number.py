"""A number that somebody gave for a setting: pydantic alone takes true for 1, and false for 0."""

from __future__ import annotations


def meant_number(value: object) -> object:
    """Return *value*; raise ValueError if it is true or false."""
    if isinstance(value, bool):
        raise ValueError("give a number, not true or false")  # noqa: TRY004 - a ValueError is what pydantic words
    return value
