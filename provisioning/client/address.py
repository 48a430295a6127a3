"""The address of a provisioning service: what may be one.

Only ``https://`` is: over plain HTTP an enrolment token would be anybody's who listens, and a revocation feed anybody's
who answers.
"""

from __future__ import annotations

from urllib.parse import urlsplit

_SHOWN = 200


def misnamed(base_url: str) -> str | None:
    """Return why *base_url* is no address of a provisioning service, or None."""
    try:
        parts = urlsplit(base_url)
        named = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0 and base_url.isprintable()
    except ValueError:  # Brackets that hold no address, a port that is none.
        named = False
    return None if named else no_address(base_url, "give https://host:port")


def no_address(base_url: str, why: str) -> str:
    """Return what to say of *base_url*, which is none, however long it is."""
    return f"{base_url[:_SHOWN]!r} is no address of a provisioning service: {why}"
