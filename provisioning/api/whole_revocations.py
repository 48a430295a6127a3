"""A revocation whose request arrived complete and is clearly valid: handled without the framework.

Theory
------
The framework's way from a path to `revoke` (routes, dependencies, validation, an answer's serialisation) takes longer
than the revocation. Here the same parts are called one after the other: the body's model, the check of the operator,
`revoke` itself, and the serialiser that the framework uses for its answer::

    body ─► RevocationRequest ─ not valid, a key, another media type ─► the framework
                 └─ valid ─► operator ─► revoke ─► answer

Rules
-----
1. Any other request goes to the framework from its head on: only the framework words errors in a request.
2. The answers here equal the framework's, to the byte; a test compares.
3. A body is parsed here before the caller is authenticated, so it must not be large, and is not parsed at all if no
   certificate came with it: the framework's path parses nothing of a stranger's (`provisioning.api.idempotency`).
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response
from starlette.types import Scope

from provisioning.api.asked_for import each_once
from provisioning.api.idempotency import HEADER
from provisioning.api.operators import PREFIX, OperatorServices
from provisioning.api.peer import peer_certificate_der
from provisioning.api.revocations import RevocationRequest, revoke
from provisioning.errors import Refused
from provisioning.store import conditions

PATH: Final = f"{PREFIX}/revocations"
_JSON: Final = "application/json"
_KEY: Final = HEADER.lower().encode()
_LARGEST: Final = 4 * 1024
"""What is wrong in a body takes a hundred times as long as what is right: 2 ms here, and 8 in 16 KB."""
_ANSWER: Final = TypeAdapter(dict[str, Any])


class _Route:
    """What the metrics call it."""

    path: Final = PATH


_ROUTE: Final = _Route()


class RevocationResponder:
    """Answers requests that `read` has read."""

    def __init__(self, services: OperatorServices, maximum_body: int) -> None:
        """*maximum_body* is what the framework's layers let through."""
        self._services = services
        self._maximum_body = maximum_body

    def knows(self, path: str, size: int) -> bool:
        """Whether a POST to *path* with a body of *size* octets may be answered here."""
        return path == PATH and size <= self._maximum_body

    def read(self, scope: Scope, body: bytes) -> RevocationRequest | None:
        """Return what is asked for, None if that is for the framework to find out."""
        if len(body) > _LARGEST or peer_certificate_der(scope) is None:
            return None
        named: list[tuple[bytes, bytes]] = scope["headers"]
        types = [value for name, value in named if name == b"content-type"]
        if types != [_JSON.encode()] or any(name == _KEY for name, _ in named):
            return None
        try:
            return RevocationRequest.model_validate(json.loads(body, object_pairs_hook=each_once))
        except (ValidationError, ValueError, RecursionError, Refused):
            return None

    async def respond(self, scope: Scope, asked: RevocationRequest) -> Response:
        """Return the answer; raise `Refused` where the framework's way does."""
        scope["route"] = _ROUTE
        response = Response(status_code=HTTPStatus.CREATED, media_type=_JSON)
        with conditions.of_one_request():
            operator = await self._services.check(scope, revoke)
            told = await revoke(asked, operator, self._services, response)
        return Response(_ANSWER.dump_json(told), response.status_code, media_type=_JSON)
