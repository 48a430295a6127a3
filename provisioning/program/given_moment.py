"""A time on the command line: as RFC 3339 has it, with or without its clock time, or as our tables show it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import typer

_SHOWN: Final = " UTC"
"""How a time ends in a table, from which it may be copied."""


def moment(text: str) -> datetime:
    """Parse a time on the command line: in UTC unless it has an offset; for `typer.Option(parser=…)`.

    Typer's own parser would take a number as seconds since 1970: a year would be a time on that first day.
    """
    try:
        given = datetime.fromisoformat(text.removesuffix(_SHOWN))
        if given.tzinfo is not None and text.endswith(_SHOWN):
            raise ValueError("two zones")  # noqa: TRY301 - it is as much no time as what has none
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} is not a time: write 2027-01-05, or 2027-01-05T08:00:00, in UTC") from error
    if given.tzinfo is None:
        return given.replace(tzinfo=UTC)
    try:
        return given.astimezone(UTC)
    except OverflowError as error:
        raise typer.BadParameter(f"{text} is outside the years 1 to 9999 in UTC") from error


Since = Annotated[
    datetime | None,
    typer.Option(
        metavar="TIME",
        parser=moment,
        help="At this time or later, in UTC: 2027-01-05, or 2027-01-05T08:00:00.",
        show_default=False,
    ),
]
Until = Annotated[
    datetime | None,
    typer.Option(metavar="TIME", parser=moment, help="Before this time, in UTC.", show_default=False),
]
