"""Conditional requests (RFC 9110 §13): whether the client has the current document."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def is_current(
    if_none_match: str | None, if_modified_since: str | None, etag: str, last_modified: datetime | None
) -> bool:
    """Return whether 304 is the answer; *etag* with its quotes.

    A date that cannot be read is no condition, nor is any where there is no *last_modified*.
    """
    if if_none_match is not None:
        return if_none_match.strip() == "*" or etag in (
            each.strip().removeprefix("W/") for each in if_none_match.split(",")
        )
    if if_modified_since is None or last_modified is None:
        return False
    try:
        return parsedate_to_datetime(if_modified_since).astimezone(UTC) >= last_modified
    except (ValueError, OverflowError):
        return False
