"""A point in time that a caller names: in UTC unless it says otherwise, and one that UTC has."""

from __future__ import annotations

from datetime import UTC, datetime

from provisioning.errors import Code, Refused


def utc_of(moment: datetime | None) -> datetime | None:
    """Return *moment* in UTC; raise `Refused` where its offset leads out of the years 1 to 9999."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        return moment.replace(tzinfo=UTC)
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise Refused(Code.INVALID_REQUEST, f"{moment.isoformat()} is outside the years 1 to 9999 in UTC") from error
