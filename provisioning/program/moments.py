"""How the programs write a moment, which is always aware: in UTC, as RFC 3339 does for programs, and for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import overload


@overload
def rfc3339(moment: datetime) -> str: ...
@overload
def rfc3339(moment: datetime | None) -> str | None: ...
def rfc3339(moment: datetime | None) -> str | None:
    """Return *moment* as text, to the second; None stays None."""
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def rfc3339_milliseconds(moment: datetime) -> str:
    """Return *moment* as text, to the millisecond."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def rfc3339_exactly(moment: datetime) -> str:
    """Return *moment*, in UTC, as text, to the microsecond; to the second if it has none."""
    return moment.isoformat().replace("+00:00", "Z")


def shown_time(moment: datetime) -> str:
    """Return *moment* for people, to the second; `provisioning.program.given_moment` reads it."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def shown_minute(moment: datetime) -> str:
    """Return *moment* for people, to the minute: for what is far away, or not that exact."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
