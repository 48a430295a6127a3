"""The types of settings, where pydantic alone would accept values that nobody means.

It accepts true for 1, an empty text for the current folder, and any number for seconds; but code that counts down
cannot use an infinite time-out. Each type refuses such values with an explanation.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, Field

from provisioning.pki.identity import check_name, check_trust_domain
from provisioning.program.durations import seconds_in
from provisioning.program.given_file import named
from provisioning.program.meant_number import meant_number

MOST: Final = 2**62
"""For anything counted: it fits into the integers of C and SQLite, and is never reached."""
LONGEST: Final = 10 * 365 * 86_400.0
"""Seconds; a longer time means for ever, which has its own setting where it makes sense."""


def _seconds(value: object) -> object:
    """Convert a text with a unit, such as 5m, to seconds; a number is seconds."""
    if not isinstance(value, str):
        return meant_number(value)
    if (seconds := seconds_in(value.strip())) is not None:
        return seconds
    try:
        return float(value)
    except ValueError:
        raise ValueError("give a number of seconds, or a time with its unit, such as 90s, 5m or 12h") from None


def several(value: object) -> object:
    """Convert one value to a list of one, and a text to the items between its commas, as in the environment."""
    if isinstance(value, str):
        return tuple(filter(None, map(str.strip, value.split(","))))
    return (value,) if isinstance(value, Path) else value


def _not_empty(host: str) -> str:
    """Refuse an empty host, which the kernel takes for every address: nobody would see that it is meant."""
    if not host:
        raise ValueError("is empty; give an address of this machine, or leave it out")
    return host


Whole = Annotated[int, BeforeValidator(meant_number)]
Real = Annotated[float, BeforeValidator(meant_number)]
File = Annotated[Path, BeforeValidator(named)]
FileText = Annotated[str, BeforeValidator(named)]
"""A file, or a word that means none."""
Name = Annotated[str, AfterValidator(partial(check_name, "the name"))]
"""The last part of an identity."""
Host = Annotated[str, AfterValidator(_not_empty)]
"""An address of this machine, or a name of one."""
TrustDomain = Annotated[str, AfterValidator(check_trust_domain)]
Port = Annotated[Whole, Field(ge=0, le=65535)]
"""0 for any free one."""
Count = Annotated[Whole, Field(ge=1, le=MOST)]
CountOrNone = Annotated[Whole, Field(ge=0, le=MOST)]
Span = Annotated[float, BeforeValidator(_seconds)]
"""Seconds, or a time with its unit, such as 5m."""
WholeSpan = Annotated[int, BeforeValidator(_seconds)]
"""The same, where MQTT counts in whole seconds."""
Seconds = Annotated[Span, Field(gt=0, le=LONGEST)]
Interval = Annotated[Span, Field(gt=0, le=86_400)]
