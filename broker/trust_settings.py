"""Settings of trust, as they are written in the configuration: whom to believe, and what to do when one cannot know.

Values only: `broker.admission` makes of them what decides. An error names the value and what it may be.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field
from pydantic_settings import NoDecode

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_GRACE = re.compile(r"grace\s+(\d+(?:\.\d+)?)\s*([smhd]?)")


@dataclass(frozen=True, slots=True)
class StatusPolicy:
    """What becomes of a newcomer whose status is not known for sure: for how long yesterday's answer will do.

    ``require``: refused. ``grace 12h``: admitted until the answer is that much out of date. ``advisory``: admitted.
    Whoever is known to be revoked is refused under any of them.
    """

    grace: float | None = 0.0
    """Seconds; None: for ever, even if there never was an answer."""

    def allows(self, overdue: float | None) -> bool:
        """Whether a status that is *overdue* by so many seconds will do; None: there never was one."""
        return self.grace is None or (overdue is not None and overdue <= self.grace)

    def __str__(self) -> str:
        match self.grace:
            case None:
                return "advisory"
            case 0:
                return "require"
            case seconds:
                return f"grace {seconds:g}s"


REQUIRE = StatusPolicy()


def _status_policy(value: object) -> object:
    if isinstance(value, str):
        text = value.strip().lower()
        if text in {"require", "advisory"}:
            return StatusPolicy(0.0 if text == "require" else None)
        if found := _GRACE.fullmatch(text):
            return StatusPolicy(float(found[1]) * _SECONDS[found[2] or "s"])
        raise ValueError(f"{value!r} is none of: require, advisory, grace <time> (such as: grace 12h)")
    return value


def _several(value: object) -> object:
    """Take one for a list of one, and a text for the items between its commas, as the environment writes it."""
    if isinstance(value, str):
        return tuple(filter(None, map(str.strip, value.split(","))))
    return (value,) if isinstance(value, Path) else value


def _http_url(value: str) -> str:
    if not value.startswith("http://"):
        raise ValueError(f"{value!r}: a list or an answer is signed, so it is fetched by plain http://, nothing else")
    return value


Policy = Annotated[StatusPolicy, BeforeValidator(_status_policy), NoDecode]
Paths = Annotated[tuple[Path, ...], BeforeValidator(_several), NoDecode]
Urls = Annotated[tuple[Annotated[str, BeforeValidator(_http_url)], ...], BeforeValidator(_several), NoDecode]
Interval = Annotated[float, Field(gt=0, le=86400)]
