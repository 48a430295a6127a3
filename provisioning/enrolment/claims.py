"""Claim certificates, made and ended by operators.

Theory
------
A claim certificate is self-signed: no CA vouches for it, so no broker and no other service ever trusts it. The HTTPS
server takes it as a trust anchor of its own, and only enrolment accepts it (`provisioning.enrolment.ways.claim`). Its
key is generated here, handed to the operator once, and not kept.

Rules
-----
1. A claim has an end and a number of devices; both are checked when it is used, whatever TLS thinks of it.
2. It is no CA: nothing that its key signs is accepted as a certificate.
3. No device is ever certified for its key, however it is admitted (`provisioning.store.device_keys`): everybody in the
   batch could be that device.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.ca.profile import DIGITAL_SIGNATURE
from provisioning.errors import Code, Refused, invalid
from provisioning.pki.identity import InvalidIdentity, check_name
from provisioning.pki.keys import generate_key, key_to_pem, spki_fingerprint
from provisioning.program.durations import out_of_bounds
from provisioning.store import audit, claims, device_keys, serials
from provisioning.store.audit import Action
from provisioning.store.claims import NewClaim, StoredClaim
from provisioning.store.database import Database

MAXIMUM_LIFE: Final = timedelta(days=366)
MAXIMUM_DEVICES: Final = 1_000_000
TRIALS: Final = (timedelta(minutes=5), timedelta(days=7))
DEFAULT_TRIAL: Final = timedelta(hours=1)
_BACKDATE: Final = timedelta(minutes=1)

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ClaimOrder:
    """What an operator asks for."""

    name: str
    group: str
    maximum_devices: int
    life: timedelta
    trial: timedelta = DEFAULT_TRIAL


@dataclass(frozen=True, slots=True)
class IssuedClaim:
    """A claim on its way to the operator; the only moment at which its key exists here."""

    claim: StoredClaim
    key_pem: bytes

    def __repr__(self) -> str:
        """Leave the key out: representations end in logs."""
        return f"IssuedClaim({self.claim.name!r})"


class ClaimService:
    """Makes, lists and ends claims."""

    def __init__(
        self, database: Database, clock: Callable[[], datetime], trust_changed: Callable[[], Awaitable[object]]
    ) -> None:
        """*trust_changed* is awaited after a claim was made or ended."""
        self._database = database
        self._clock = clock
        self._trust_changed = trust_changed

    async def create(self, order: ClaimOrder, *, by: str) -> IssuedClaim:
        """Make a claim certificate and its key; raise `Refused` naming the field that is wrong."""
        _check(order)
        now = self._clock()
        key = generate_key()
        certificate = _self_signed(order, key, now)
        der = certificate.public_bytes(Encoding.DER)
        fingerprint = hashlib.sha256(der).hexdigest()
        new = NewClaim(
            order.name,
            order.group,
            fingerprint,
            der,
            order.maximum_devices,
            order.trial,
            certificate.not_valid_after_utc,
        )

        def record(connection: Connection) -> StoredClaim:
            try:
                claims.add(connection, new, by=by, now=now)
            except IntegrityError as error:
                raise Refused(Code.NAME_EXISTS, f"a claim {order.name} exists already: choose another name") from error
            device_keys.keep_from_all(connection, spki_fingerprint(key.public_key()))
            facts = {
                "group": order.group,
                "maximum_devices": order.maximum_devices,
                "expires_at": new.expires_at,
                "fingerprint_sha256": fingerprint,
            }
            audit.append(connection, now, by, Action.CLAIM_CREATED, order.name, facts)
            return _known(claims.find_named(connection, order.name, now), order.name)

        stored = await self._database.write(record)
        await self._trust_changed()
        log.info("claim created", claim=order.name, group=order.group, devices=order.maximum_devices, by=by)
        return IssuedClaim(stored, key_to_pem(key))

    async def end(self, name: str, *, by: str) -> StoredClaim:
        """End a claim: it admits no more devices. Devices that enrolled with it stay."""

        def record(connection: Connection) -> StoredClaim:
            now = self._clock()
            if claims.end(connection, name, now):
                audit.append(connection, now, by, Action.CLAIM_ENDED, name, {})
            return _known(claims.find_named(connection, name, now), name)

        ended = await self._database.write(record)
        await self._trust_changed()
        log.info("claim ended", claim=name, by=by)
        return ended

    async def find(self, name: str) -> StoredClaim:
        """Return the claim called *name*; raise `Refused` if there is none."""
        now = self._clock()
        return _known(await self._database.read(lambda connection: claims.find_named(connection, name, now)), name)

    async def page(self, *, limit: int, after: str | None) -> list[StoredClaim]:
        """Return claims in order of name, after the name *after*."""
        now = self._clock()
        return list(
            await self._database.read(lambda connection: claims.page(connection, limit=limit, after=after, now=now))
        )


def _check(order: ClaimOrder) -> None:
    try:
        check_name("name", order.name)
        check_name("group", order.group)
    except InvalidIdentity as error:
        raise invalid(str(error)) from error
    if not 1 <= order.maximum_devices <= MAXIMUM_DEVICES:
        raise invalid(f"maximum_devices must be 1 to {MAXIMUM_DEVICES}")
    if not timedelta(minutes=1) <= order.life <= MAXIMUM_LIFE:
        raise invalid(out_of_bounds("life_seconds", order.life, timedelta(minutes=1), MAXIMUM_LIFE))
    if not TRIALS[0] <= order.trial <= TRIALS[1]:
        raise invalid(out_of_bounds("activation_seconds", order.trial, *TRIALS))


def _self_signed(order: ClaimOrder, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.Certificate:
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "Fleetgate claim"),
            x509.NameAttribute(NameOID.COMMON_NAME, order.name),
        ]
    )
    now = now.replace(microsecond=0)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serials.new_serial())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + order.life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(DIGITAL_SIGNATURE, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


def _known(stored: StoredClaim | None, name: str) -> StoredClaim:
    if stored is None:
        raise Refused(Code.CLAIM_UNKNOWN, f"no claim is called {name[:80]!r}")
    return stored
