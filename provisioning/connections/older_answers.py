"""Answers for libest, Cisco's library that many EST clients are built on, in the only form that it can parse.

libest 3.2.0 (in Debian, libest3) sends HTTP/1.0. It does not accept an answer whose status line says HTTP/1.1, and
recognises header fields only as the standards print them, not in lower case: so it can neither enrol nor fetch a CA's
certificates from a server that answers as the standards permit (RFC 9110 §5.1, §6.2). §6.2 lets a server answer in the
older version if a User-Agent is known to need that, and only then.

Handles: status line and field names. Does not handle: chunked bodies, which our EST answers never are.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

_VERSION: Final = "1.0"
_CLIENT: Final = b"libest "
_OLD, _NEW = b"HTTP/1.0 ", b"HTTP/1.1 "
_END_OF_HEAD, _END_OF_LINE = b"\r\n\r\n", b"\r\n"
_NAMES: Final = {b"www-authenticate": b"WWW-Authenticate"}


def reads_only_its_own(version: str, headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Return whether a client of *version*, with *headers* (names in lower case), is known to need such answers."""
    return version == _VERSION and any(name == b"user-agent" and value.startswith(_CLIENT) for name, value in headers)


class OlderAnswer:
    """A transport for one answer, which writes the head as libest reads it; the wrapped one does the rest."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._begun = False

    def write(self, data: bytes) -> None:
        """Send *data*; the first piece contains the whole head."""
        if not self._begun:
            self._begun = True
            data = _older(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def _older(answer: bytes) -> bytes:
    head, end, body = answer.partition(_END_OF_HEAD)
    status, *fields = head.split(_END_OF_LINE)
    if status.startswith(_NEW):
        status = _OLD + status.removeprefix(_NEW)
    return _END_OF_LINE.join([status, *map(_as_printed, fields)]) + end + body


def _as_printed(field: bytes) -> bytes:
    name, colon, value = field.partition(b":")
    return _NAMES.get(name.lower(), name.title()) + colon + value
