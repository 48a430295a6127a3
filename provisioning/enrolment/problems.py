"""Turns a refusal into an HTTP response: the only file that knows HTTP statuses.

EST clients get one line of plain text whose first word is the code (RFC 7030 §4.2.3 asks for readable text); the REST
API gives a problem document (RFC 9457) with the code as a member.

A client that has shown no evidence gets the same answer and status whatever the reason: a stranger must not find out
which ways a group has, or who is on its list (docs/decisions/0163-unauthenticated-requests-learn-nothing.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from starlette.responses import JSONResponse, PlainTextResponse, Response

from provisioning.errors import Code, Pending, Refused, RefusedItem, RefusedStranger, RefusedTogether

STATUSES: Final[Mapping[Code, HTTPStatus]] = {
    Code.BODY_ENCODING: HTTPStatus.BAD_REQUEST,
    Code.BODY_TOO_LARGE: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    Code.BODY_TOO_SLOW: HTTPStatus.REQUEST_TIMEOUT,
    Code.INVALID_REQUEST: HTTPStatus.BAD_REQUEST,
    Code.MEDIA_TYPE: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    Code.METHOD_NOT_ALLOWED: HTTPStatus.METHOD_NOT_ALLOWED,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.CSR_MALFORMED: HTTPStatus.BAD_REQUEST,
    Code.CSR_SIGNATURE: HTTPStatus.BAD_REQUEST,
    Code.CSR_KEY: HTTPStatus.BAD_REQUEST,
    Code.CSR_NAME: HTTPStatus.BAD_REQUEST,
    Code.CSR_SUBJECT_CHANGED: HTTPStatus.BAD_REQUEST,
    Code.CSR_LINK: HTTPStatus.BAD_REQUEST,
    Code.KEY_REUSED: HTTPStatus.BAD_REQUEST,
    Code.KEY_ENCRYPTION: HTTPStatus.BAD_REQUEST,
    Code.SERVER_KEYS_REFUSED: HTTPStatus.FORBIDDEN,
    Code.TOKEN_MISSING: HTTPStatus.UNAUTHORIZED,
    Code.TOKEN_UNKNOWN: HTTPStatus.UNAUTHORIZED,
    Code.TOKEN_USED: HTTPStatus.UNAUTHORIZED,
    Code.TOKEN_EXPIRED: HTTPStatus.UNAUTHORIZED,
    Code.TOKEN_VOID: HTTPStatus.UNAUTHORIZED,
    Code.TOKEN_DEVICE: HTTPStatus.FORBIDDEN,
    Code.TOKEN_GROUP: HTTPStatus.FORBIDDEN,
    Code.NAME_TAKEN: HTTPStatus.FORBIDDEN,
    Code.NOT_ADMITTED: HTTPStatus.UNAUTHORIZED,
    Code.CLAIM_EXHAUSTED: HTTPStatus.FORBIDDEN,
    Code.CLAIM_ENDED: HTTPStatus.FORBIDDEN,
    Code.MANUFACTURER_CERTIFICATE: HTTPStatus.FORBIDDEN,
    Code.MANUFACTURER_REVOKED: HTTPStatus.FORBIDDEN,
    Code.MANUFACTURER_LIST_LAPSED: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.NOT_LISTED: HTTPStatus.FORBIDDEN,
    Code.APPROVAL_DENIED: HTTPStatus.FORBIDDEN,
    Code.APPROVALS_FULL: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.APPROVAL_DECIDED: HTTPStatus.CONFLICT,
    Code.APPROVAL_OUTDATED: HTTPStatus.CONFLICT,
    Code.WEBHOOK_VETO: HTTPStatus.FORBIDDEN,
    Code.WEBHOOK_FAILED: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.WAY_REFUSED: HTTPStatus.FORBIDDEN,
    Code.GROUP_FULL: HTTPStatus.FORBIDDEN,
    Code.GROUP_UNKNOWN: HTTPStatus.NOT_FOUND,
    Code.GROUP_EXISTS: HTTPStatus.CONFLICT,
    Code.CLAIM_UNKNOWN: HTTPStatus.NOT_FOUND,
    Code.MANUFACTURER_UNKNOWN: HTTPStatus.NOT_FOUND,
    Code.MANUFACTURER_LIST_UNKNOWN: HTTPStatus.NOT_FOUND,
    Code.APPROVAL_UNKNOWN: HTTPStatus.NOT_FOUND,
    Code.NAME_EXISTS: HTTPStatus.CONFLICT,
    Code.TOKEN_NUMBER_UNKNOWN: HTTPStatus.NOT_FOUND,
    Code.TOKEN_SPENT: HTTPStatus.CONFLICT,
    Code.CERTIFICATE_MISSING: HTTPStatus.FORBIDDEN,
    Code.CERTIFICATE_UNKNOWN: HTTPStatus.FORBIDDEN,
    Code.CERTIFICATE_REVOKED: HTTPStatus.FORBIDDEN,
    Code.CERTIFICATE_SUSPENDED: HTTPStatus.FORBIDDEN,
    Code.CERTIFICATE_EXPIRED: HTTPStatus.FORBIDDEN,
    Code.ROLE: HTTPStatus.FORBIDDEN,
    Code.OPERATOR_ROLE: HTTPStatus.FORBIDDEN,
    Code.LAST_ADMIN: HTTPStatus.CONFLICT,
    Code.PROTECTED: HTTPStatus.CONFLICT,
    Code.DEVICE_SUSPENDED: HTTPStatus.FORBIDDEN,
    Code.DEVICE_DECOMMISSIONED: HTTPStatus.FORBIDDEN,
    Code.REVOCATION_FINAL: HTTPStatus.CONFLICT,
    Code.ON_TRIAL: HTTPStatus.CONFLICT,
    Code.DEVICE_UNKNOWN: HTTPStatus.NOT_FOUND,
    Code.SERIAL_UNKNOWN: HTTPStatus.NOT_FOUND,
    Code.CERTIFICATE_FOREIGN: HTTPStatus.NOT_FOUND,
    Code.FEED_AHEAD: HTTPStatus.CONFLICT,
    Code.FEED_CROWDED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.IDEMPOTENCY_BUSY: HTTPStatus.CONFLICT,
    Code.IDEMPOTENCY_MISMATCH: HTTPStatus.UNPROCESSABLE_ENTITY,
    Code.IDEMPOTENCY_UNKNOWN: HTTPStatus.CONFLICT,
    Code.RATE_LIMITED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}

INTERNAL_ERROR: Final = Refused(Code.INTERNAL, "internal error; the service's log says why")

_RETRY_AFTER_SECONDS: Final = 5
_BASIC_CODES: Final = frozenset(code for code in Code if code.startswith("TOKEN_")) | {Code.NOT_ADMITTED}
_TO_STRANGERS: Final = (
    "this request shows no credential that admits it: present what the operator has given you, such as a token by HTTP "
    "Basic (user = device name), or ask the operator: the service's log says why"
)


def text_answer(refusal: Refused, headers: Mapping[str, str] | None = None) -> Response:
    """Return the refusal as one line of plain text."""
    if isinstance(refusal, RefusedStranger):
        refusal = Refused(Code.NOT_ADMITTED, _TO_STRANGERS + refusal.beside)
    return PlainTextResponse(f"{refusal}\n", STATUSES[refusal.code], headers={**_headers(refusal), **(headers or {})})


def pending_answer(pending: Pending) -> Response:
    """Return EST's 202 (RFC 7030 §4.2.3): the request is known, and may be repeated."""
    return PlainTextResponse(
        f"PENDING: {pending.detail}\n", HTTPStatus.ACCEPTED, headers={"Retry-After": str(pending.retry_after)}
    )


def problem_answer(refusal: Refused, headers: Mapping[str, str] | None = None) -> Response:
    """Return the refusal as a problem document."""
    status = STATUSES[refusal.code]
    document: dict[str, object] = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "code": refusal.code.value,
        "detail": refusal.detail,
    }
    if isinstance(refusal, RefusedTogether):
        document["items"] = [_item(each) for each in refusal.items]
    return JSONResponse(
        document, status, headers={**_headers(refusal), **(headers or {})}, media_type="application/problem+json"
    )


def _item(item: RefusedItem) -> dict[str, object]:
    return {item.kind: item.name, "code": item.code.value, "detail": item.detail}


def _headers(refusal: Refused) -> dict[str, str]:
    if refusal.retry_after is not None:
        return {"Retry-After": str(refusal.retry_after)}
    match STATUSES[refusal.code]:
        case HTTPStatus.UNAUTHORIZED if refusal.code in _BASIC_CODES:
            return {"WWW-Authenticate": 'Basic realm="enrolment", charset="UTF-8"'}
        case HTTPStatus.SERVICE_UNAVAILABLE | HTTPStatus.TOO_MANY_REQUESTS:
            return {"Retry-After": str(_RETRY_AFTER_SECONDS)}
        case HTTPStatus.REQUEST_ENTITY_TOO_LARGE | HTTPStatus.REQUEST_TIMEOUT:
            return {"Connection": "close"}  # The rest of the body is not read.
        case _:
            return {}
