"""What a conversion has to say besides its settings: all of it is collected, so that one run tells everything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from broker.mosquitto.line import InvalidValue, Line

T = TypeVar("T")


@dataclass(slots=True)
class Findings:
    """Lines that are impossible to convert, and lines that are left out, each with the reason."""

    _impossible: list[tuple[Line, str]] = field(default_factory=list)
    _left_out: list[tuple[Line, str]] = field(default_factory=list)

    def impossible(self, line: Line, text: str) -> None:
        """Take note that *line* prevents the conversion; *text* says why, and the remedy."""
        self._impossible.append((line, text))

    def left_out(self, line: Line, why: str) -> None:
        """Take note that *line* has no counterpart, and needs none."""
        self._left_out.append((line, why))

    def value(self, line: Line, read: Callable[[Line], T], otherwise: T) -> T:
        """Return what *read* makes of *line*; *otherwise*, if its value is impossible, which is then noted."""
        try:
            return read(line)
        except InvalidValue as error:
            self.impossible(line, str(error))
            return otherwise

    @property
    def problems(self) -> list[str]:
        """Why there is no conversion, in the order of the lines; empty if there is one."""
        return _told(self._impossible)

    @property
    def notes(self) -> list[str]:
        """What has been left out, in the order of the lines."""
        return _told(self._left_out)


def _told(found: list[tuple[Line, str]]) -> list[str]:
    in_order = sorted(found, key=lambda each: each[0].order)
    return list(dict.fromkeys(f"{line.where}: {line.key}: {text}" for line, text in in_order))
