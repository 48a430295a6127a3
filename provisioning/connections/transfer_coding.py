"""Validates a request's Transfer-Encoding (RFC 9112 §6.1): bodies come in chunks, and in no other coding.

The parser takes the chunks apart and passes over whatever coding is named before them: a compressed body would be read
as if it were not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_CHUNKED: Final = b"chunked"


class UnknownCodingError(ValueError):
    """A body in a coding besides chunks: to be answered with 501 (RFC 9112 §6.1)."""


def check_transfer_coding(values: Sequence[bytes], http_version: str) -> None:
    """Raise ValueError unless *values*, of all Transfer-Encoding headers of a request, name chunks and nothing else."""
    if http_version == "1.0":
        raise ValueError("HTTP/1.0 has no transfer codings")  # RFC 9112 §6.1: its framing is faulty.
    *others, last = (each.strip(b" \t").lower() for value in values for each in value.split(b","))
    if last != _CHUNKED:
        raise ValueError("nothing says where the body ends")  # RFC 9112 §6.3, and §7: chunked takes no parameters.
    if any(others):  # Empty elements of a list are ignored (RFC 9110 §5.6.1.2).
        raise UnknownCodingError("a transfer coding besides chunked")
