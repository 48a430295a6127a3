"""The body of the service's answer, as text and as JSON: whatever it is, reading it raises a ValueError at most.

httpx takes the charset that an answer names for the name of any of Python's codecs, of which some decode no text
(``charset=hex``), and Python's JSON parser ends at deep nesting with an error that is about the interpreter.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx


def text_of(response: httpx.Response) -> str:
    """Return the body as text: in UTF-8, as the service writes it, and what is not is replaced."""
    return response.content.decode(errors="replace")


def document_of(response: httpx.Response) -> Any:
    """Return the JSON document in the body; raise ValueError if it is none."""
    try:
        return json.loads(response.content)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def problem_of(response: httpx.Response) -> dict[str, Any] | None:
    """Return the problem document (RFC 9457) of a refusal; None: it has none, so another program listens there."""
    try:
        problem = document_of(response)
    except ValueError:
        return None
    return problem if isinstance(problem, dict) else None
