"""One line of mosquitto.conf, with its value read as mosquitto reads it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

BLANKS: Final = re.compile(r"[ \t]+")
"""What separates words; other white space is part of a name or a value."""
_TRUTH: Final = {"true": True, "1": True, "false": False, "0": False}
_WHOLE: Final = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|[0-9]+)")
"""Python reads more as a number, which is another one to C, or none: ``1_000``, ``0b1``, digits of other scripts."""
_LEAST, _MOST = -(2**31), 2**31 - 1
_DIGITS: Final = 15
"""More than any number here has; Python does not read one of many thousands."""


class InvalidValue(ValueError):
    """mosquitto would not accept the value; the text says what it may be."""


def decimal(text: str) -> int | None:
    """Return the number that *text* is, or of a very long one another that is too large; None: it is no number."""
    return int(text.lstrip("0")[:_DIGITS] or "0") if text.isascii() and text.isdecimal() else None


@dataclass(frozen=True, slots=True)
class Line:
    """An option and its value, and where they are."""

    number: int
    key: str
    value: str
    file: str = ""
    """The included file; empty: the file that includes it, or that includes none."""
    order: int = 0
    """How many lines mosquitto reads before it."""

    @property
    def where(self) -> str:
        """The line, and its file if that is an included one."""
        return f"{self.file}: line {self.number}" if self.file else f"line {self.number}"

    @property
    def first(self) -> str:
        """The first word of the value: mosquitto ignores others behind a number, a truth or a word."""
        return self.words[0]

    @property
    def words(self) -> list[str]:
        """The words of the value, at least one."""
        return BLANKS.split(self.value)

    def is_true(self) -> bool:
        """Return the value as true or false. Raises `InvalidValue`."""
        if self.first not in _TRUTH:
            raise InvalidValue(f"{self.first!r} is neither true nor false")
        return _TRUTH[self.first]

    def whole(self) -> int:
        """Return the value as a number. Raises `InvalidValue`."""
        try:
            number = int(self.first if _WHOLE.fullmatch(self.first) else "", 0)  # As strtol does: 0x10 is 16.
        except ValueError:
            raise InvalidValue(f"{self.first!r} is no whole number") from None
        if not _LEAST <= number <= _MOST:
            raise InvalidValue(f"{self.first!r} is out of mosquitto's range")
        return number
