"""The operators' REST API under ``/v1``: enrolment tokens, devices, certificates, revocation, status.

Every route reads, calls a service or the store, and writes; who may call is one dependency.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from provisioning.api.peer import peer_certificate
from provisioning.enrolment.authentication import authenticate, check_role
from provisioning.enrolment.tokens import DEFAULT_TTL, MAXIMUM_BATCH, IssuedToken, TokenOrder, TokenService
from provisioning.errors import Code, Refused
from provisioning.pki.identity import Role
from provisioning.pki.revocation import RevocationReason
from provisioning.revocation.feed import RevocationFeed
from provisioning.revocation.publisher import CrlPublisher
from provisioning.revocation.service import RevocationService, Revoked
from provisioning.store import certificates, devices, tokens
from provisioning.store.certificates import CertificateState, StoredCertificate
from provisioning.store.database import Database
from provisioning.store.devices import Device, DeviceState

PREFIX: Final = "/v1"
MAXIMUM_PAGE: Final = 1000
_DEFAULT_PAGE: Final = 100

Limit = Annotated[int, Query(ge=1, le=MAXIMUM_PAGE)]
Name = Annotated[str, Field(max_length=64)]


class TokensRequest(BaseModel):
    """Which enrolment tokens to make: for ``device``, for each of ``devices``, or for new devices of ``group``."""

    model_config = ConfigDict(extra="forbid")

    device: Name | None = None
    devices: Annotated[list[Name], Field(min_length=1, max_length=MAXIMUM_BATCH)] | None = None
    group: Name | None = None
    role: Role = Role.DEVICE
    ttl_seconds: int = int(DEFAULT_TTL.total_seconds())
    lifetime_seconds: int | None = None
    count: int = 1
    dns_names: Annotated[list[Annotated[str, Field(max_length=253)]], Field(max_length=32)] = []
    ip_addresses: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=32)] = []

    @model_validator(mode="after")
    def _one_of_device_and_devices(self) -> TokensRequest:
        if self.device is not None and self.devices is not None:
            raise ValueError("give device or devices, not both")
        return self

    def order(self) -> TokenOrder:
        """Return what the token service makes of it."""
        named = self.devices or ([self.device] if self.device is not None else [])
        ttl, lifetime = _seconds(self.ttl_seconds), None
        if self.lifetime_seconds is not None:
            lifetime = _seconds(self.lifetime_seconds)
        return TokenOrder(named, self.group, self.role, ttl, self.count, self.dns_names, self.ip_addresses, lifetime)


class RevocationRequest(BaseModel):
    """What to revoke: a ``device`` with all its certificates, or one certificate by ``serial``."""

    model_config = ConfigDict(extra="forbid")

    device: Name | None = None
    serial: Annotated[str, Field(max_length=64)] | None = None
    reason: RevocationReason = RevocationReason.UNSPECIFIED

    @model_validator(mode="after")
    def _exactly_one(self) -> RevocationRequest:
        if (self.device is None) == (self.serial is None):
            raise ValueError("give exactly one of device and serial")
        return self


@dataclass(frozen=True, slots=True)
class OperatorServices:
    """What the routes call."""

    database: Database
    token_service: TokenService
    revocation: RevocationService
    feed: RevocationFeed
    publishers: dict[str, CrlPublisher]
    clock: Callable[[], datetime]


async def _services_of(request: Request) -> OperatorServices:
    services: OperatorServices = request.app.state.operator_services
    return services


Services = Annotated[OperatorServices, Depends(_services_of)]


async def _operator(request: Request, services: Services) -> StoredCertificate:
    certificate = peer_certificate(request)
    stored = await services.database.read(lambda connection: authenticate(connection, certificate, services.clock()))
    check_role(stored, {Role.OPERATOR})
    return stored


Operator = Annotated[StoredCertificate, Depends(_operator)]

router: Final = APIRouter(prefix=PREFIX, dependencies=[Depends(_operator)])
"""Every route here needs an operator certificate; `app.state.operator_services` says what they call."""


@router.post("/tokens", status_code=HTTPStatus.CREATED)
async def create_tokens(body: TokensRequest, operator: Operator, services: Services) -> dict[str, Any]:
    """Make one-time enrolment tokens. They are shown here and never again."""
    issued = await services.token_service.create(body.order(), by=operator.device.name)
    return {"tokens": [_token_item(each) for each in issued]}


@router.get("/devices")
async def list_devices(
    services: Services,
    limit: Limit = _DEFAULT_PAGE,
    after: Name | None = None,
    group: Name | None = None,
    state: DeviceState | None = None,
) -> dict[str, Any]:
    """List devices in order of name. ``next`` is the cursor of the page that follows."""
    found = await services.database.read(
        lambda connection: devices.page(connection, limit=limit + 1, after=after, group=group, state=state)
    )
    items = [_device_item(device, issued) for device, issued in found[:limit]]
    return {"items": items, "next": items[-1]["name"] if len(found) > limit else None}


@router.get("/devices/{name}")
async def show_device(name: str, services: Services) -> dict[str, Any]:
    """Show one device."""
    found = await services.database.read(lambda connection: devices.page(connection, limit=1, after=None, name=name))
    if not found:
        raise Refused(Code.DEVICE_UNKNOWN, f"no device is called {name[:80]!r}")
    return _device_item(*found[0])


@router.get("/certificates")
async def list_certificates(
    services: Services,
    limit: Limit = _DEFAULT_PAGE,
    after: Annotated[int, Query(ge=0, le=2**62)] | None = None,
    device: Name | None = None,
    state: CertificateState | None = None,
) -> dict[str, Any]:
    """List certificates in order of issuance. ``next`` is the cursor of the page that follows."""
    now = services.clock()
    found = await services.database.read(
        lambda connection: certificates.page(
            connection, limit=limit + 1, after=after, now=now, device=device, state=state
        )
    )
    items = [_certificate_item(each, now) for each in found[:limit]]
    return {"items": items, "next": str(found[limit - 1].id) if len(found) > limit else None}


@router.get("/certificates/{serial}")
async def show_certificate(serial: str, services: Services) -> dict[str, Any]:
    """Show one certificate, with its PEM."""
    text = normal_serial(serial)
    found = await services.database.read(lambda connection: certificates.find_serial(connection, text))
    if found is None:
        raise Refused(Code.SERIAL_UNKNOWN, f"no certificate has the serial number {text}")
    stored, der = found
    pem = x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode()
    return _certificate_item(stored, services.clock()) | {"pem": pem}


@router.post("/revocations", status_code=HTTPStatus.CREATED)
async def revoke(body: RevocationRequest, operator: Operator, services: Services, response: Response) -> dict[str, Any]:
    """Revoke, finally. 201 if this call did it, 200 with the original facts if it was done before."""
    by = operator.device.name
    if body.device is not None:
        outcome = await services.revocation.revoke_device(body.device, body.reason, by=by)
    else:
        outcome = await services.revocation.revoke_serial(normal_serial(body.serial or ""), body.reason, by=by)
    if not outcome.changed:
        response.status_code = HTTPStatus.OK
    return {"revoked": [_revoked_item(each) for each in outcome.revoked]}


@router.get("/status")
async def status(services: Services) -> dict[str, Any]:
    """Count what there is, and say how fresh the CRLs are."""
    now = services.clock()
    device_counts, certificate_counts, open_tokens = await services.database.read(
        lambda connection: (
            devices.count(connection),
            certificates.count(connection, now),
            tokens.count_open(connection, now),
        )
    )
    return {
        "devices": device_counts,
        "certificates": certificate_counts,
        "tokens": {"open": open_tokens},
        "feed": {"sequence": services.feed.newest, "subscribers": services.feed.subscribers},
        "crls": {
            name: {
                "number": crl.number,
                "entries": crl.entries,
                "this_update": rfc3339(crl.this_update),
                "next_update": rfc3339(crl.next_update),
            }
            for name, publisher in services.publishers.items()
            if (crl := publisher.current) is not None
        },
    }


def normal_serial(text: str) -> str:
    """Return a serial number as the store writes it, from any usual spelling; raise `Refused` if it is none."""
    digits = text.replace(":", "").lower().removeprefix("0x")
    if not digits or len(digits) > 40 or any(digit not in "0123456789abcdef" for digit in digits):  # noqa: PLR2004 - 20 octets
        raise Refused(Code.INVALID_REQUEST, f"serial {text[:80]!r} is not a serial number in hexadecimal")
    return digits.lstrip("0") or "0"


def rfc3339(moment: datetime) -> str:
    """Return *moment* in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(number: int) -> timedelta:
    # A number of seconds that no timedelta holds is refused like any other that is too large.
    return timedelta(seconds=max(-1, min(number, 10**9)))


def _token_item(issued: IssuedToken) -> dict[str, Any]:
    return {
        "device": issued.grant.device,
        "group": issued.grant.group,
        "role": issued.grant.role,
        "token": issued.token,
        "expires_at": rfc3339(issued.expires_at),
    }


def _device_item(device: Device, issued: int) -> dict[str, Any]:
    return {
        "name": device.name,
        "role": device.role,
        "group": device.group,
        "state": device.state,
        "created_at": rfc3339(device.created_at),
        "revoked_at": None if device.revoked_at is None else rfc3339(device.revoked_at),
        "certificates": issued,
    }


def _certificate_item(stored: StoredCertificate, now: datetime) -> dict[str, Any]:
    revocation = stored.revocation
    return {
        "serial": stored.serial,
        "device": stored.device.name,
        "role": stored.device.role,
        "group": stored.device.group,
        "issuer_key_id": stored.issuer_key_id,
        "fingerprint_sha256": stored.fingerprint_sha256,
        "not_before": rfc3339(stored.not_before),
        "not_after": rfc3339(stored.not_after),
        "state": stored.state(now),
        "revoked_at": None if revocation is None else rfc3339(revocation.revoked_at),
        "reason": None if revocation is None else revocation.reason,
        "sequence": None if revocation is None else revocation.sequence,
    }


def _revoked_item(revoked: Revoked) -> dict[str, Any]:
    return {
        "serial": revoked.serial,
        "device": revoked.device,
        "reason": revoked.reason,
        "revoked_at": rfc3339(revoked.revoked_at),
        "sequence": revoked.sequence,
    }
