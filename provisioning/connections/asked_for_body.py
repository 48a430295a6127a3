"""Answers to clients that wait to be asked for their body (``Expect: 100-continue``), and were not asked.

Such a client may send its body all the same, or the next request in its place (RFC 9110 §10.1.1): nothing on the
connection tells which. The server would take the next request, in front of a shared proxy perhaps somebody else's, for
the body. So the connection ends behind the answer.

Handles: the head of an answer. Does not handle: when the body is asked for, which the library does when it is read.
"""

from __future__ import annotations

from typing import Any, Final

_ASKS: Final = b"HTTP/1.1 100 "
_END_OF_HEAD: Final = b"\r\n\r\n"
_CLOSE: Final = b"\r\nconnection: close"


class AskedForBody:
    """A transport for one answer, which closes the connection unless the body is asked for before it."""

    def __init__(self, cycle: Any) -> None:
        """*cycle* is the library's, whose transport this stands before."""
        self._cycle = cycle
        self._transport = cycle.transport
        self._begun = False

    def write(self, data: bytes) -> None:
        """Send *data*; the first piece asks for the body, or contains the whole head."""
        if not self._begun:
            self._begun = True
            if not data.startswith(_ASKS):
                data = self._closing(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _closing(self, answer: bytes) -> bytes:
        if not self._cycle.keep_alive:
            return answer  # It says so already.
        self._cycle.keep_alive = False
        head, end, body = answer.partition(_END_OF_HEAD)
        return head + _CLOSE + end + body
