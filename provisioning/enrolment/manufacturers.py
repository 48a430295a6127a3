"""Manufacturers, registered and ended by operators: whose device certificates (IDevIDs) open a group.

Rules
-----
1. What is registered is the CA that issues the device certificates itself: no chain is followed, so nobody else that
   some root above it has certified gets in.
2. It must be a CA with a key that is not weak, by the one judge of keys (`provisioning.ca.key_policy`): the
   certificates that it signs decide who a device is.
3. Two manufacturers may number their devices alike: give one of them a prefix. A device remembers whose it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.ca.key_policy import KeyPolicy, WeakKey
from provisioning.errors import Code, Refused
from provisioning.pki.extension import UNREADABLE, extension
from provisioning.pki.identity import InvalidIdentity, check_name
from provisioning.pki.keys import key_identifier
from provisioning.pki.tls import TlsConfigurationError, client_context
from provisioning.store import audit, authorities, manufacturers
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.manufacturers import StoredManufacturer

MAXIMUM_PREFIX: Final = 32
_UNREADABLE: Final = (*UNREADABLE, UnsupportedAlgorithm, TlsConfigurationError)

log = structlog.get_logger(__name__)


class ManufacturerService:
    """Registers, lists and ends manufacturers' CAs."""

    def __init__(
        self, database: Database, clock: Callable[[], datetime], trust_changed: Callable[[], Awaitable[object]]
    ) -> None:
        """*trust_changed* is awaited after a CA was registered or ended."""
        self._database = database
        self._clock = clock
        self._trust_changed = trust_changed

    async def add(self, *, name: str, group: str, name_prefix: str, pem: str, by: str) -> StoredManufacturer:
        """Register the CA in *pem*; raise `Refused` naming the field that is wrong."""
        try:
            check_name("name", name)
            check_name("group", group)
            if name_prefix:
                check_name("name_prefix", name_prefix)
        except InvalidIdentity as error:
            raise _invalid(str(error)) from error
        if len(name_prefix) > MAXIMUM_PREFIX:
            raise _invalid(f"name_prefix has {len(name_prefix)} characters, {MAXIMUM_PREFIX} at most")
        certificate = _ca(pem)
        now = self._clock()
        der = certificate.public_bytes(Encoding.DER)
        fingerprint = hashlib.sha256(der).hexdigest()

        def record(connection: Connection) -> StoredManufacturer:
            if authorities.knows(connection, key_identifier(certificate.public_key())):
                raise _invalid("certificate is a CA of this fleet: whom it certifies would come in again as a newcomer")
            try:
                manufacturers.add(
                    connection,
                    name=name,
                    group=group,
                    name_prefix=name_prefix,
                    subject=certificate.subject.public_bytes(),
                    fingerprint_sha256=fingerprint,
                    der=der,
                    by=by,
                    now=now,
                )
            except IntegrityError as error:
                raise Refused(
                    Code.NAME_EXISTS, f"there is a manufacturer {name}, or one with this certificate already"
                ) from error
            facts = {"group": group, "name_prefix": name_prefix, "fingerprint_sha256": fingerprint}
            audit.append(connection, now, by, Action.MANUFACTURER_ADDED, name, facts)
            return _known(manufacturers.find_named(connection, name), name)

        stored = await self._database.write(record)
        await self._trust_changed()
        log.info("manufacturer added", manufacturer=name, group=group, fingerprint=fingerprint, by=by)
        return stored

    async def end(self, name: str, *, by: str) -> StoredManufacturer:
        """End the trust in a manufacturer: its certificates let nobody in any more. Who came in stays."""

        def record(connection: Connection) -> StoredManufacturer:
            now = self._clock()
            if manufacturers.end(connection, name, now):
                audit.append(connection, now, by, Action.MANUFACTURER_ENDED, name, {})
            return _known(manufacturers.find_named(connection, name), name)

        ended = await self._database.write(record)
        await self._trust_changed()
        log.info("manufacturer ended", manufacturer=name, by=by)
        return ended

    async def page(self, *, limit: int, after: str | None) -> list[StoredManufacturer]:
        """Return manufacturers in order of name, after the name *after*."""
        return list(
            await self._database.read(lambda connection: manufacturers.page(connection, limit=limit, after=after))
        )


def _ca(pem: str) -> x509.Certificate:
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
        if len(found) != 1:
            raise _invalid(f"certificate holds {len(found)} certificates: give the one CA that issues the IDevIDs")
        (certificate,) = found
        key, _ = certificate.public_key(), certificate.subject
        constraints, usage = extension(certificate, x509.BasicConstraints), extension(certificate, x509.KeyUsage)
        # All listeners trust it from now on: what OpenSSL does not read would leave them without any trust.
        client_context(certificate.public_bytes(Encoding.PEM).decode())
    except _UNREADABLE as error:
        raise _invalid(f"certificate is not one PEM certificate ({error})") from error
    if constraints is None:
        raise _invalid("certificate is no CA's: it has no Basic Constraints")
    if not constraints.ca or (usage is not None and not usage.key_cert_sign):
        raise _invalid("certificate is no CA's: register the CA that issues the IDevIDs, not an IDevID")
    _check_key(key)
    return certificate


def _check_key(key: object) -> None:
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP521R1):
        return  # Nothing that is certified here has it, but a CA may.
    try:
        KeyPolicy().check(key)
    except WeakKey as error:
        raise _invalid(f"certificate has a weak key, or one of a kind that is not supported ({error})") from error


def _known(stored: StoredManufacturer | None, name: str) -> StoredManufacturer:
    if stored is None:
        raise Refused(Code.MANUFACTURER_UNKNOWN, f"no manufacturer is called {name[:80]!r}")
    return stored


def _invalid(detail: str) -> Refused:
    return Refused(Code.INVALID_REQUEST, detail)
