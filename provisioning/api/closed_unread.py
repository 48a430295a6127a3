"""Answers without their text, for Bouncy Castle's EST client, which fails on a body that it closes unread.

Java's EST client (``org.bouncycastle.est`` in bcpkix, 1.80 in Debian) sends a request without its password, and again
with it after a 401. It closes that first answer, and a 202, without reading, and if a body was announced raises an
`IOException` instead of continuing. The texts are for people (RFC 7030 §4.2.3), and neither status needs one.

1. A client without User-Agent gets no text with a 202, nor with a 401 to a request without Authorization. The programs
   that people use, and HTTP libraries, send one (RFC 9110 §10.1.5: SHOULD); Bouncy Castle's client does not.
2. Status and header fields stay, and the log still has the reason. Clients read every other refusal, which has its
   text.

Handles: which answers, and their form. Does not handle: what is refused, and why.
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
