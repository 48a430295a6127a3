"""A repeated request is not executed again: the Idempotency-Key header (an IETF draft of that name).

Theory
------
A caller that gets no answer cannot know whether the request was executed. With a key of its own choice (a UUID) it may
send the request again, and gets the first one's answer. The key applies to one operator and one path::

    key unknown ─► kept as under way ─► changed (in the change's own transaction) ─► answer kept ─► …for a day
    key known   ─► same request? ─ no ─► 422     answered? ─ yes ─► the same answer   ─ no ─► 409, under way
                   process lost? ─► nothing changed: executed     changed: 409, its outcome is unknown

An answer may contain tokens, whose secrets must not be in the store. So it is encrypted under a key derived from the
audit log's, in a file beside the CA keys: the database alone does not disclose a token.

Rules
-----
1. Only an operator who may make the request now gets an answer, and only to the operator's own request.
2. Only successful answers are kept: after a refusal, a corrected request may use the same key.
3. A request whose process died before it had changed anything is executed by the next one, `_ABANDONED` after it began;
   not one that this process is still at, however long it takes. The slow one can then change nothing any more: its
   transactions look whether the key is still its own.
4. If something was changed and the answer is lost, nothing is executed again: whoever asks must look. Except where
   the route is `repeatable`: its request only takes something away, so to do it twice is safer than to ask back.
5. Whatever becomes of the key, the caller gets the answer to what was done. If instead a store that fails now, and
   cannot keep the answer, led to an error, the caller would do it again.
6. After a refusal the caller knows that it was not done, and the key is free. 503 and 500 are none: the COMMIT may have
   been executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from fastapi import HTTPException, Request, Response
from fastapi.exceptions import ValidationException
from fastapi.routing import APIRoute
from sqlalchemy.engine import Connection

from provisioning.api.asked_for import AskedFor
from provisioning.api.body import read_whole
from provisioning.errors import Code, Refused
from provisioning.store import conditions, idempotency
from provisioning.store.database import Database
from provisioning.store.idempotency import KnownRequest

log = structlog.get_logger(__name__)

EndpointT = TypeVar("EndpointT", bound=Callable[..., object])

HEADER: Final = "Idempotency-Key"
KEPT: Final = timedelta(days=1)

_ABANDONED: Final = timedelta(minutes=1)
_NONCE_OCTETS: Final = 12
_REPEATABLE = "executed_again_if_lost"
_KEY: Final = re.compile(r'"[\x21\x23-\x7e]{1,128}"|[\x21\x23-\x7e]{1,128}', re.ASCII)


def repeatable(endpoint: EndpointT) -> EndpointT:
    """Mark a route whose request is executed again if its answer was lost: it only takes something away."""
    setattr(endpoint, _REPEATABLE, True)
    return endpoint


class AnswerBook:
    """Which requests were answered, and how."""

    def __init__(self, database: Database, secret: bytes, clock: Callable[[], datetime]) -> None:
        """*secret* is the audit log's key; what is used here is derived from it."""
        self._database = database
        self._clock = clock
        self._digest_key = hmac.digest(secret, b"idempotency key digest", hashlib.sha256)
        self._cipher = AESGCM(hmac.digest(secret, b"idempotency answer", hashlib.sha256))
        self._doing: Final[dict[bytes, datetime]] = {}
        """The keys of requests that this process is at, and when it took them."""

    def digest_of(self, *facts: str) -> bytes:
        """Return what the store knows a request by."""
        return hmac.digest(self._digest_key, json.dumps(facts).encode(), hashlib.sha256)

    async def begin(self, digest: bytes, request_digest: bytes) -> Response | None:
        """Return the answer that was given already, None if the request is to be done now; raise `Refused`."""
        now = self._clock()

        def transaction(connection: Connection) -> KnownRequest | None:
            idempotency.remove_older(connection, digest, now - KEPT)
            known = idempotency.begin(connection, digest, request_digest, now)
            if known is None or known.answer is not None or known.request_digest != request_digest:
                return known
            # Else abandoned, or begun by a clock that was set back since.
            if digest in self._doing or abs(now - known.begun_at) < _ABANDONED:
                raise Refused(
                    Code.IDEMPOTENCY_BUSY,
                    f"a request with this {HEADER} is still being processed: repeat it in a few seconds",
                )
            if known.changed:
                raise Refused(
                    Code.IDEMPOTENCY_UNKNOWN,
                    f"a request with this {HEADER} has changed something, and its answer is lost: it was done, or "
                    "a part of it; look what is there (audit show), and use a new key for what is missing",
                )
            idempotency.begin_again(connection, digest, now)
            return None

        known = await self._database.write(transaction)
        if known is None:
            self._doing[digest] = now
            return None
        if known.request_digest != request_digest:
            raise Refused(
                Code.IDEMPOTENCY_MISMATCH,
                f"this {HEADER} was used for another request: choose a new one for each request",
            )
        return self._opened(digest, known.answer or b"")

    @contextlib.contextmanager
    def doing(self, digest: bytes, *, again: bool = False) -> Iterator[None]:
        """End with the block what `begin` has begun: until then it is known not to be abandoned.

        Its transactions record that they change something, unless it may be done *again*.
        """
        taken = self._doing[digest]

        def record(connection: Connection) -> None:
            if not idempotency.record_change(connection, digest, taken):
                raise Refused(
                    Code.IDEMPOTENCY_BUSY, f"this took so long that another process has taken over its {HEADER}"
                )

        try:
            if not again:
                conditions.record(record)
            yield
        finally:
            conditions.record(None)
            del self._doing[digest]

    async def finish(self, digest: bytes, response: Response) -> None:
        """Keep the answer to a request that was done, unless another process has taken the key over."""
        nonce = secrets.token_bytes(_NONCE_OCTETS)
        head = json.dumps([response.status_code, response.media_type or "application/json"]).encode()
        sealed = nonce + self._cipher.encrypt(nonce, head + b"\n" + bytes(response.body), digest)
        taken = self._doing[digest]
        await self._settle(lambda connection: idempotency.finish(connection, digest, taken, sealed))

    async def forget(self, digest: bytes, *, refused: bool = True) -> None:
        """Free the key of a request that was *refused*, unless another process has taken it over.

        One that failed without being refused, and may have changed something, keeps it.
        """
        taken = self._doing[digest]
        await self._settle(
            lambda connection: idempotency.forget(connection, digest, taken, though_changed=refused),
        )

    async def _settle(self, settle: Callable[[Connection], None]) -> None:
        conditions.record(None)
        try:
            await self._database.write(settle)
        except Refused as refusal:
            log.warning("answer not kept", code="ANSWER_NOT_KEPT", detail=refusal.detail)

    def _opened(self, digest: bytes, sealed: bytes) -> Response:
        head, _, body = self._cipher.decrypt(sealed[:_NONCE_OCTETS], sealed[_NONCE_OCTETS:], digest).partition(b"\n")
        status, media_type = json.loads(head)
        return Response(body, status, {"Idempotency-Replayed": "true"}, media_type)


class IdempotentRoute(APIRoute):
    """A route of the operators' API, whose POST requests may carry the header."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the route's own handler; what is required of the caller concerns this request.

        Who may not call is refused before the handler reads the body: a megabyte of JSON takes a tenth of a second.
        """
        handle = super().get_route_handler()
        asked_for = AskedFor(self)
        again: bool = getattr(self.endpoint, _REPEATABLE, False)

        async def once(request: Request) -> Response:
            keys = request.headers.getlist(HEADER)
            with conditions.of_one_request():
                await request.app.state.operator_services.authorise(request)
                asked_for.check(request)
                asked_for.check_body(await read_whole(request))
                if not keys or request.method != "POST":
                    return await handle(request)
                return await _once(request, _checked(_only(keys)), handle, again=again)

        return once


async def _once(
    request: Request, key: str, handle: Callable[[Request], Coroutine[Any, Any, Response]], *, again: bool
) -> Response:
    services = request.app.state.operator_services
    operator = await services.authorise_whole(request)
    book: AnswerBook = services.answers
    digest = book.digest_of(operator.device.name, request.url.path, key)
    query = request.url.query.encode()  # Of one without any what was kept before stays good.
    request_digest = hashlib.sha256(b"?%b\0" % query + await request.body() if query else await request.body()).digest()
    answer = await book.begin(digest, request_digest)
    if answer is not None:
        return answer
    with book.doing(digest, again=again):
        try:
            response = await handle(request)
        except Exception as error:
            conditions.require(None)
            await book.forget(digest, refused=_is_refusal(error))
            raise
        conditions.require(None)  # It is done, which the caller shall know; a repetition is checked anew.
        await book.finish(digest, response)
        return response


def _is_refusal(error: Exception) -> bool:
    """Whether what was asked for is known not to be done."""
    if isinstance(error, Refused):
        return error.code is not Code.UNAVAILABLE
    return isinstance(error, (HTTPException, ValidationException))


def _only(keys: list[str]) -> str:
    """Return the one key; raise `Refused` if there are several: by one of them, this may be another request."""
    if len(keys) > 1:
        raise Refused(Code.INVALID_REQUEST, f"{HEADER}: given more than once; give it once")
    return keys[0]


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise Refused(Code.INVALID_REQUEST, f"{HEADER} must have 1 to 128 visible ASCII characters: a UUID is best")
    return key.strip('"')
