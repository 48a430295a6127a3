"""Keeps the name of an option on one line of a help text, where the formatter would end the line at a hyphen.

``--end-`` at the end of one line and ``claims`` on the next is neither found by a search nor copied.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Final

_NAME: Final = re.compile(r"--\w[\w-]*")
_STAND_IN: Final = "\N{NON-BREAKING HYPHEN}"


@functools.cache
def whole_names(formatter: Any) -> Any:
    """Return a class like *formatter*, which is click's or Typer's own, that breaks no option's name."""

    class WholeNames(formatter):  # type: ignore[misc] # of whichever of the two it is
        def write(self, string: str) -> None:
            super().write(string.replace(_STAND_IN, "-"))

        def write_text(self, text: str) -> None:
            super().write_text(_kept(text))

        def write_dl(self, rows: Any, **settings: Any) -> None:
            super().write_dl([(first, _kept(second)) for first, second in rows], **settings)

    return WholeNames


def _kept(text: str) -> str:
    return _NAME.sub(lambda found: found[0].replace("-", _STAND_IN), text)
