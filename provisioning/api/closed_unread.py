"""Answers without their text, for Bouncy Castle's EST client, which takes a text that it closes unread for a fault.

Java's EST client (``org.bouncycastle.est`` in bcpkix, 1.80 in Debian) asks without its password, and again with it when
it hears 401. It closes that first answer, and a 202, without reading, and where a body was announced raises an
`IOException` instead of going on. The texts are for people (RFC 7030 §4.2.3), and neither status needs one.

1. Who names no User-Agent gets no text with a 202, nor with a 401 to a request without Authorization. What people ask
   with, and each HTTP library, names itself (RFC 9110 §10.1.5: SHOULD); Bouncy Castle's client does not.
2. Status and fields stay, and so does the log, which says why as ever. Every other refusal is read, and has its text.

Handles: which answers, and how they look then. Does not handle: what is refused, and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import Response


def is_closed_unread(status: int, headers: Mapping[bytes, bytes]) -> bool:
    """Say whether who has asked with *headers* (names in lower case) is taken to close an answer of *status* unread."""
    if b"user-agent" in headers:
        return False
    return status == HTTPStatus.ACCEPTED or (status == HTTPStatus.UNAUTHORIZED and b"authorization" not in headers)


def without_text(response: Response) -> Response:
    """Return *response* with no body, and its other fields."""
    kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
    return Response(status_code=response.status_code, headers=kept)
