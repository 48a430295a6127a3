"""The parameters of an admin API request, checked before anything is done for it.

Rules
-----
1. A parameter without effect, such as a mistyped filter, is refused, and so is one given twice: which one applies would
   depend on the reader, here or at a proxy on the way.
2. An error names the field.
3. What the audit log records about a request is bounded, whatever the request contains.
4. A large body is read in a thread: a megabyte of JSON may be a hundred thousand small objects, for half a second. One
   of very many strings is not read: the parser goes through an object without letting others run.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from itertools import islice
from typing import Any, Final, TypeVar

from broker.admin.http_messages import Request
from broker.reload.parts import Candidate, ProposedAnchors
from broker.reload.report import Part
from provisioning.program.printable import is_text

MOST_REASON: Final = 200
"""Characters of the reason that a client is told."""
_READ_AT_ONCE: Final = 4096
"""Bytes of a body that are read in the event loop: some milliseconds, whatever they are."""
_MOST_STRINGS: Final = 500
"""Names and texts in a large body: what makes one large is a single text."""
_MOST_TOLD: Final = 10
_MOST_LIMIT: Final = 999_999_999
_QUERIES: Final[Mapping[str, Collection[str]]] = {"/v1/why": ("about",)}
"""The query parameters allowed for a path; where sessions are selected, the selection defines them."""
_SELECTING: Final = frozenset({"/v1/sessions", "/v1/subscriptions"})
_RELOAD_FIELDS: Final = ("parts", "dry_run", "policy", "anchors", "bundle")
_CANDIDATES: Final = {
    "policy": "the text of a policy file",
    "anchors": "certificates in PEM",
    "bundle": "the name of a trust bundle",
}

T = TypeVar("T")


class InvalidRequest(ValueError):
    """A field of a request is invalid; the text names it."""


async def read(body: bytes, reading: Callable[[bytes], T]) -> T:
    """Return what *reading* makes of *body*, without holding up the event loop."""
    return await asyncio.to_thread(reading, body) if len(body) > _READ_AT_ONCE else reading(body)


def refuse_unknown(request: Request) -> None:
    """Raise `InvalidRequest` for a parameter without effect, such as a mistyped one."""
    if request.path in _SELECTING:
        return
    known = _QUERIES.get(request.path, ())
    if unknown := request.query.keys() - known:
        there = f"there is {', '.join(known)}" if known else "there is none here"
        raise InvalidRequest(f"{min(unknown)}: no such parameter; {there}")


def reload_asked(body: bytes) -> tuple[set[Part], dict[Part, Candidate], bool]:
    """Return the parts to reload, what a dry run is to try instead of the files, and whether it is one.

    Raises `InvalidRequest`.
    """
    asked = object_in(body)
    unknown = asked.keys() - _RELOAD_FIELDS
    if unknown:
        raise InvalidRequest(f"{min(unknown)}: no such field; there are {', '.join(_RELOAD_FIELDS)}")
    names = asked.get("parts", list(Part))
    if not isinstance(names, list) or not 0 < len(names) <= len(Part) or not all(name in list(Part) for name in names):
        raise InvalidRequest(f"parts: a list of {', '.join(Part)}, each once")
    dry_run = asked.get("dry_run", False)
    if not isinstance(dry_run, bool):
        raise InvalidRequest("dry_run: true or false")
    parts, candidates = {Part(name) for name in names}, _candidates(asked, dry_run=dry_run)
    if not_asked := candidates.keys() - parts:
        raise InvalidRequest(f"parts: {min(not_asked)} is not among them, but a candidate for it is given")
    return parts, candidates, dry_run


def _candidates(asked: dict[str, Any], *, dry_run: bool) -> dict[Part, Candidate]:
    """Return what a dry run is to try instead of the files' contents."""
    policy, anchors, bundle = asked.get("policy"), asked.get("anchors"), asked.get("bundle")
    for name, what in _CANDIDATES.items():
        value = asked.get(name)
        if value is not None and not (isinstance(value, str) and dry_run):
            raise InvalidRequest(f"{name}: {what}, and only for a dry run")
        if value is not None and not is_text(value):
            raise InvalidRequest(f"{name}: contains a lone surrogate, \\ud800 to \\udfff")
    if bundle is not None and anchors is None:
        raise InvalidRequest("bundle: only together with anchors; give anchors")
    candidates: dict[Part, Candidate] = {}
    if policy is not None:
        candidates[Part.POLICY] = policy
    if anchors is not None:
        candidates[Part.TRUST] = ProposedAnchors(anchors, bundle)
    return candidates


def limit_of(text: str | None) -> int | None:
    """Return the highest number to show. Raises `InvalidRequest`."""
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > len(str(_MOST_LIMIT)) or not int(text):
        raise InvalidRequest(f"limit: a number from 1 to {_MOST_LIMIT}")
    return int(text)


def object_in(body: bytes) -> dict[str, Any]:
    """Return the JSON object that *body* is. Raises `InvalidRequest`."""
    if len(body) > _READ_AT_ONCE and body.replace(b'\\"', b"").count(b'"') > 2 * _MOST_STRINGS:
        raise InvalidRequest(f"the body has more than {_MOST_STRINGS} strings")
    try:
        document = json.loads(body, object_pairs_hook=_each_once)
    except InvalidRequest:
        raise
    except (ValueError, RecursionError) as error:  # The latter for endlessly nested input.
        raise InvalidRequest(f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidRequest("the body is not a JSON object")
    return document


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise InvalidRequest(f"{name}: given twice")
    return found


def told_of(request: Request) -> dict[str, object]:
    """Return *request*'s content for the audit log: its query, and a JSON object in its body; long values are cut."""
    said: dict[str, object] = (
        {"query": {key: _short(value) for key, value in request.query.items()}} if request.query else {}
    )
    if request.method == "POST":
        try:
            body = object_in(request.body)
        except InvalidRequest:
            said["bytes"] = len(request.body)
        else:
            said["body"] = {key[:MOST_REASON]: _short(value) for key, value in islice(body.items(), _MOST_TOLD)}
    return said


def _short(value: object) -> object:
    if isinstance(value, str):
        return value[:MOST_REASON]
    if isinstance(value, list):
        return [_short(each) if isinstance(each, str) else "…" for each in value[:_MOST_TOLD]]
    if isinstance(value, float) and not math.isfinite(value):  # NaN and Infinity are not JSON: a line of the log is.
        return "…"
    return value if value is None or isinstance(value, int | float) else "…"
