"""Refuses requests to the operators' API with parameters that their route would ignore.

A filter whose name is mistyped, ``?grop=north``, would find every device, and a cursor under another name the first
page for ever; of a parameter given twice only the last would count, and so of a field: of ``{"devices": ["a"],
"devices": ["b"]}`` the framework would have only b revoked. So they are refused, as in the broker's admin API; and so
is a body not declared as JSON, as ``curl -d`` sends it, before the framework reports fields as missing.

And so is JSON with more in it than any request has: the framework makes a report of each member that a route does not
take, 25 µs each, and a megabyte has room for a hundred thousand.

Handles: names of query parameters, Content-Type, how much is in a body, fields given twice, the words for a mistyped
field. Does not handle: values, and what is no JSON (the framework, by each route's types).
"""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from provisioning.errors import Code, Refused
from provisioning.program.near_names import nearest
from provisioning.program.printable import printable

_SHOWN: Final = 40
_JSON: Final = "application/json"
_MOST_COMMAS: Final = 10_240
"""One between any two members or elements: the largest batch of tokens has 10,000 names."""


class AskedFor:
    """The parameters that one route takes."""

    def __init__(self, route: APIRoute) -> None:
        self._parameters = frozenset(_parameters(route.dependant))
        self._takes_json = route.body_field is not None

    def check(self, request: Request) -> None:
        """Raise `Refused` if *request* has anything that its route would ignore."""
        said: set[str] = set()
        for name, _ in request.query_params.multi_items():
            if name not in self._parameters:
                raise Refused(Code.INVALID_REQUEST, f"{name[:_SHOWN]!r}: no such parameter; {self._instead_of(name)}")
            if name in said:
                raise Refused(Code.INVALID_REQUEST, f"{name}: given more than once; give it once")
            said.add(name)
        if self._takes_json and _has_body(request) and not _is_json(request):
            media_type = request.headers.get("content-type", "")
            raise Refused(Code.MEDIA_TYPE, f"Content-Type is {media_type[:_SHOWN]!r}: send {_JSON}")

    def check_body(self, body: bytes) -> None:
        """Raise `Refused` if *body*, which is not parsed yet, has more in it than its route would take."""
        if self._takes_json:
            check_json(body)

    def _instead_of(self, name: str) -> str:
        if near := nearest(name[:_SHOWN], self._parameters):
            return f"is {near} meant?"
        return f"this path takes {', '.join(sorted(self._parameters)) or 'none'}"


def no_such_field(route: object, where: Sequence[int | str]) -> str:
    """Return what to say of a field of a body that *route* does not take, *where* the framework has found it."""
    body = route.body_field if isinstance(route, APIRoute) else None
    *above, name = where
    if body is None or above != ["body"]:  # It is in one of the body's own objects.
        return "no such field"
    fields = getattr(body.field_info.annotation, "model_fields", {})
    if near := nearest(str(name)[:_SHOWN], fields):
        return f"no such field; is {near} meant?"
    return f"no such field; this path takes {', '.join(sorted(fields))}"


def check_json(body: bytes) -> None:
    """Raise `Refused` if *body* has more members and elements than any request has, or a member twice.

    Commas in texts count, too. What is no JSON passes: the framework says where it is wrong.
    """
    if body.count(b",") > _MOST_COMMAS:
        raise Refused(
            Code.INVALID_REQUEST, f"the body has more in it than any request: {_MOST_COMMAS} commas at most; divide it"
        )
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(body, object_pairs_hook=each_once)


def each_once(members: list[tuple[str, object]]) -> dict[str, object]:
    """Return the *members* of an object in JSON; raise `Refused` if one is there twice."""
    once = dict(members)
    if len(once) < len(members):
        twice = next(name for name, often in Counter(name for name, _ in members).items() if often > 1)
        raise Refused(Code.INVALID_REQUEST, f"{printable(twice[:_SHOWN])}: given more than once; give it once")
    return once


def _parameters(dependant: Dependant) -> Iterator[str]:
    """Yield the names of all query parameters of a route, those of what it depends on too."""
    for field in dependant.query_params:
        yield field.alias
    for each in dependant.dependencies:
        yield from _parameters(each)


def _has_body(request: Request) -> bool:
    headers = request.headers
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _is_json(request: Request) -> bool:
    essence = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return essence == _JSON or (essence.startswith("application/") and essence.endswith("+json"))
