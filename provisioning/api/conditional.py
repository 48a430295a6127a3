"""Conditional requests (RFC 9110 §13): whether the client has the current document."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def is_current(
    if_none_match: Sequence[str], if_modified_since: Sequence[str], etag: str, last_modified: datetime | None
) -> bool:
    """Return whether the answer is 304, for headers of which each may occur any number of times.

    *etag* has its quotes. An invalid date is no condition, nor are several (§13.1.3), nor is any if there is
    no *last_modified*.

    Only exactly the document's date counts. §13.1.3 would let any later one count too, which is right if a
    document exists from its date on. A CRL exists from its signing on, and has an earlier date than the previous one
    if the clock was set back: a client that has the previous one, and sends its date, must get the new one.
    """
    if if_none_match:
        tags = ",".join(if_none_match)
        return tags.strip() == "*" or _names(tags, etag)
    if len(if_modified_since) != 1 or last_modified is None:
        return False
    try:
        said = parsedate_to_datetime(if_modified_since[0])
    except (ValueError, OverflowError):
        return False
    # All dates of HTTP are in GMT (§5.6.7), though that of asctime does not say so.
    return said.replace(tzinfo=said.tzinfo or UTC) == last_modified


def _names(tags: str, etag: str) -> bool:
    """Whether *etag* is one of *tags*; without taking them apart, as a stranger may send 32,000 commas."""
    before, found, after = tags.partition(etag)
    before, after = before.removesuffix("W/").rstrip(), after.lstrip()
    return bool(found) and before[-1:] in ("", ",") and after[:1] in ("", ",")
