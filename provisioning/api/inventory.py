"""The operators' REST API for certificates: search, export, show.

One search serves the list, the counts and the export. The export is streamed page by page: only one page's text is in
memory, whatever the size of the fleet; certificates that are issued meanwhile may be in it. The first is read before
the answer begins, so that a search that the store does not take, or a store that fails, is an error. A client may take
any time for the rest, so each page checks that the caller is still an operator: if not, the connection is cut, and the
export is visibly incomplete.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import Depends, Query, Request
from sqlalchemy.engine import Connection
from starlette.responses import StreamingResponse

from provisioning.api.moment import utc_of
from provisioning.api.operators import (
    DEFAULT_PAGE,
    Limit,
    Name,
    Operator,
    OperatorServices,
    Services,
    new_router,
    stretch_of,
)
from provisioning.api.revocations import named_serial
from provisioning.enrolment.authentication import check_still
from provisioning.errors import Code, Refused
from provisioning.program.csv_cell import csv_cell
from provisioning.program.moments import rfc3339
from provisioning.store import authorities, certificates, claims, inventory
from provisioning.store.certificates import CertificateState, StoredCertificate
from provisioning.store.claims import TrialState
from provisioning.store.inventory import CertificateSearch

log = structlog.get_logger(__name__)

router: Final = new_router()

COLUMNS: Final = (
    "serial",
    "device",
    "role",
    "group",
    "issuer_key_id",
    "fingerprint_sha256",
    "not_before",
    "not_after",
    "state",
    "revoked_at",
    "reason",
    "sequence",
    "invalidity_date",
    "suspended_by_itself",
    "trial",
)
EXPORT_PAGE: Final = 250
"""Certificates: each client who takes an export has so many of them in memory, as text."""
_SHA256_DIGITS: Final = 64


class ExportFormat(StrEnum):
    """Format of an export."""

    CSV = "csv"
    JSON = "json"


async def _search(
    services: Services,
    device: Name | None = None,
    group: Name | None = None,
    serial: Annotated[str | None, Query(max_length=64)] = None,
    fingerprint: Annotated[str | None, Query(max_length=95)] = None,
    issuer: Annotated[str | None, Query(max_length=64)] = None,
    state: CertificateState | None = None,
    expires_from: datetime | None = None,
    expires_before: datetime | None = None,
) -> CertificateSearch:
    return CertificateSearch(
        device,
        group,
        None if serial is None else named_serial(serial),
        None if fingerprint is None else _sha256(fingerprint),
        None if issuer is None else await _key_id(services, issuer),
        state,
        utc_of(expires_from),
        utc_of(expires_before),
    )


Search = Annotated[CertificateSearch, Depends(_search)]


@router.get("/certificates")
async def list_certificates(
    services: Services,
    search: Search,
    limit: Limit = DEFAULT_PAGE,
    after: Annotated[int | None, Query(ge=0, le=2**62)] = None,
) -> dict[str, Any]:
    """List certificates in order of issuance. ``next`` is the cursor of the page that follows.

    In a search by anything but ``device`` or ``serial`` a page may be shorter than ``limit``, or empty, even if
    ``next`` is not null.
    """
    now = services.clock()
    found, following = await services.database.page(
        lambda connection: _page(connection, search, limit=limit, after=after, now=now)
    )
    return stretch_of(found, following)


@router.get("/inventory/counts")
async def count_certificates(services: Services, search: Search) -> dict[str, int]:
    """Count the certificates that a search finds, by state."""
    now = services.clock()
    counts = await services.database.survey(lambda connection: inventory.count(connection, now, search))
    return {state.value: number for state, number in counts.items()}


@router.get("/inventory/export", response_class=StreamingResponse)
async def export_certificates(
    request: Request,
    services: Services,
    operator: Operator,
    search: Search,
    format_: Annotated[ExportFormat, Query(alias="format")] = ExportFormat.JSON,
) -> StreamingResponse:
    """Write every certificate that a search finds, as CSV or as a JSON array."""
    now = services.clock()

    def look(after: int | None) -> Callable[[Connection], _Found]:
        def page(connection: Connection) -> _Found:
            check_still(connection, operator, services.clock())
            return _page(connection, search, limit=EXPORT_PAGE, after=after, now=now)

        return page

    def cut(code: Code) -> None:
        log.info("export cut off", operator=operator.device.name, code=code.value)
        request.scope["extensions"]["connection"]["abort"]()

    is_csv = format_ is ExportFormat.CSV
    first = await services.database.page(look(None))
    pages = _pages(services, first, look, cut, _csv_text if is_csv else _json_text)
    if is_csv:
        return StreamingResponse(_csv(pages), media_type="text/csv; header=present")
    return StreamingResponse(_json(pages), media_type="application/json")


@router.get("/certificates/{serial}")
async def show_certificate(serial: str, services: Services) -> dict[str, Any]:
    """Show one certificate, with its PEM and that of its issuing CA, also one that is retired or revoked."""
    text = named_serial(serial)

    now = services.clock()

    def look(connection: Connection) -> tuple[dict[str, Any], list[x509.Certificate]]:
        found = certificates.find_serial(connection, text)
        if found is None:
            raise certificates.no_such_serial(text)
        stored, der = found
        path = [x509.load_der_x509_certificate(der), *authorities.below_root(connection, stored.issuer_key_id)]
        return _items(connection, [stored], now)[0], path

    item, path = await services.database.read(look)
    pem, *chain = (each.public_bytes(Encoding.PEM).decode() for each in path)
    return item | {"pem": pem, "chain": "".join(chain)}


_Found = tuple[list[dict[str, Any]], int | None]
"""A page, and where the next one begins."""
_Write = Callable[[list[dict[str, Any]]], str]
"""Returns rows as text."""


def _page(connection: Connection, search: CertificateSearch, *, limit: int, after: int | None, now: datetime) -> _Found:
    found, following = inventory.page(connection, search, limit=limit, after=after, now=now)
    return _items(connection, found, now), following


async def _pages(
    services: OperatorServices,
    first: _Found,
    look: Callable[[int | None], Callable[[Connection], _Found]],
    cut: Callable[[Code], None],
    write: _Write,
) -> AsyncIterator[str]:
    """Yield the *first* page, and what *look* finds after it, as text; call *cut*, and end, when that is refused.

    Nothing else of a page is in memory while the client takes it, which takes as long as he likes.
    """
    found, following = first
    del first
    while True:
        text, found = write(found) if found else "", []
        if text:
            yield text
        if following is None:
            return
        try:
            found, following = await services.database.page(look(following))
        except Refused as refusal:
            cut(refusal.code)
            return


async def _csv(pages: AsyncIterator[str]) -> AsyncIterator[str]:
    before = _csv_text([dict(zip(COLUMNS, COLUMNS, strict=True))])
    async for text in pages:
        yield before + text
        before = ""
    yield before


def _csv_text(items: list[dict[str, Any]]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, COLUMNS).writerows({name: csv_cell(value) for name, value in item.items()} for item in items)
    return text.getvalue()


async def _json(pages: AsyncIterator[str]) -> AsyncIterator[str]:
    before = "["
    async for text in pages:
        yield before + text
        before = ",\n"
    yield "]\n" if before != "[" else "[]\n"


def _json_text(items: list[dict[str, Any]]) -> str:
    return ",\n".join(json.dumps(item) for item in items)


async def _key_id(services: OperatorServices, issuer: str) -> str:
    """Return the key identifier of the CA that *issuer* names, or is the key identifier of."""
    named = (await services.database.read(authorities.key_ids)).get(issuer)
    if named is not None:
        return named
    try:
        return _hexadecimal(issuer)
    except Refused:
        text = f"no CA is called {issuer[:100]!r}, and it is no key identifier in hexadecimal"
        raise Refused(Code.INVALID_REQUEST, text) from None


def _sha256(fingerprint: str) -> str:
    """Return the digits of *fingerprint*. Another length finds nothing, which would read as "not one of ours"."""
    digits = _hexadecimal(fingerprint)
    if len(digits) != _SHA256_DIGITS:
        problem = f"{len(digits)} hexadecimal digits are no SHA-256 fingerprint, which has {_SHA256_DIGITS}"
        raise Refused(Code.INVALID_REQUEST, f"{problem}: openssl x509 -noout -fingerprint -sha256 prints it")
    return digits


def _hexadecimal(text: str) -> str:
    digits = text.replace(":", "").lower()
    if not digits or any(digit not in "0123456789abcdef" for digit in digits):
        raise Refused(Code.INVALID_REQUEST, f"{text[:100]!r} is not hexadecimal")
    return digits


def _items(connection: Connection, found: Sequence[StoredCertificate], now: datetime) -> list[dict[str, Any]]:
    trials = claims.became(connection, [each.id for each in found if each.on_hold], now)
    return [_certificate_item(each, now, trials.get(each.id)) for each in found]


def _certificate_item(stored: StoredCertificate, now: datetime, trial: TrialState | None) -> dict[str, Any]:
    revocation, state = stored.revocation, stored.state(now)
    if trial is not None and state is CertificateState.SUSPENDED and now >= stored.not_after:
        state = CertificateState.EXPIRED  # As `inventory` counts it.
    since = None if revocation is None else revocation.revoked_at
    if state is CertificateState.REVOKED and (revocation is None or stored.on_hold):
        since = stored.ended_above  # It is still to be recorded, with its place in the feed and its reason.
    return {
        "serial": stored.serial,
        "device": stored.device.name,
        "role": stored.device.role,
        "group": stored.device.group,
        "issuer_key_id": stored.issuer_key_id,
        "fingerprint_sha256": stored.fingerprint_sha256,
        "not_before": rfc3339(stored.not_before),
        "not_after": rfc3339(stored.not_after),
        "state": state,
        "revoked_at": rfc3339(since),
        "reason": None if revocation is None else revocation.reason,
        "sequence": None if revocation is None else revocation.sequence,
        "invalidity_date": None if revocation is None else rfc3339(revocation.invalidity_date),
        "suspended_by_itself": state is CertificateState.SUSPENDED and stored.held_by_itself,
        "trial": None if state is CertificateState.REVOKED else trial,
    }
