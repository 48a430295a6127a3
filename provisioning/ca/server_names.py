"""Names under which a server may be reached, as a certificate may hold them: exact host names, no wildcards."""

from __future__ import annotations

import re
from typing import Final

_HOST_NAME: Final = re.compile(
    # RFC 1123 §2.1 as a certificate compares it: lower case, labels of 1 to 63, 253 in all.
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*",
    re.ASCII,
)


class InvalidServerName(ValueError):
    """The text is not a host name that a certificate may hold."""


def check_host_name(name: str) -> str:
    """Return *name* if a certificate may hold it as a DNS name; raise `InvalidServerName` otherwise."""
    if not _HOST_NAME.fullmatch(name):
        raise InvalidServerName(f"{name[:80]!r} is not a host name in lower case")
    return name
