"""Manufacturers, registered and ended by operators: whose device certificates (IDevIDs) open a group.

Rules
-----
1. The registered CA is the one that issues the device certificates itself: no chain is followed, so a common root does
   not admit devices of its other subordinate CAs.
2. It must be a CA whose key is not weak: the certificates that it signs decide who a device is. One whose certificates
   TLS would never accept is refused here with a reason; devices would only get an alert.
3. Two manufacturers may use the same serial numbers: give one of them a prefix. A device records its manufacturer by
   name; so a name belongs to one CA (subject and key) for ever. That CA can be registered again: after it was
   ended, or with a renewed certificate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.ca.key_policy import KeyPolicy, WeakKey
from provisioning.enrolment.manufacturer_fetch import MAXIMUM_URLS, check_list_url
from provisioning.errors import Code, Refused, invalid
from provisioning.pki.extension import UNUSABLE, check_readable
from provisioning.pki.identity import InvalidIdentity, check_name
from provisioning.pki.keys import key_identifier
from provisioning.pki.null_parameters import null_in
from provisioning.pki.tls import TlsConfigurationError, client_context
from provisioning.store import audit, authorities, manufacturer_list_urls, manufacturers, recalls
from provisioning.store.audit import Action
from provisioning.store.database import Database
from provisioning.store.manufacturers import LapsedLists, RevokedDevices, StoredManufacturer
from provisioning.store.recalls import RecalledDevice

MAXIMUM_PREFIX: Final = 32
_MINIMUM_RSA_BITS: Final = 2048
_UNREADABLE: Final = (*UNUSABLE, TlsConfigurationError)
_KEYS: Final = KeyPolicy()

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ManufacturerChange:
    """The settings to change; None leaves one as it is."""

    lapsed_lists: LapsedLists | None = None
    revoked_devices: RevokedDevices | None = None
    list_urls: Sequence[str] | None = None


class ManufacturerService:
    """Registers, lists, changes and ends manufacturers' CAs."""

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
            raise invalid(str(error)) from error
        if len(name_prefix) > MAXIMUM_PREFIX:
            raise invalid(f"name_prefix has {len(name_prefix)} characters, {MAXIMUM_PREFIX} at most")
        now = self._clock()
        certificate = _ca(pem, now)
        der = certificate.public_bytes(Encoding.DER)
        fingerprint = hashlib.sha256(der).hexdigest()

        def record(connection: Connection) -> StoredManufacturer:
            if authorities.knows(connection, key_identifier(certificate.public_key())):
                raise invalid("certificate is that of a CA of this fleet: its devices would enrol again as new devices")
            known = manufacturers.find_named(connection, name)
            try:
                if known is not None and _comes_again(known, certificate, group, name_prefix):
                    manufacturers.put_in_place(
                        connection,
                        name,
                        subject=certificate.subject.public_bytes(),
                        fingerprint_sha256=fingerprint,
                        der=der,
                        by=by,
                        now=now,
                    )
                else:
                    manufacturers.add(
                        connection,
                        name=name,
                        group=group,
                        name_prefix=name_prefix,
                        subject=certificate.subject.public_bytes(),  # `_ca` has read it.
                        fingerprint_sha256=fingerprint,
                        der=der,
                        by=by,
                        now=now,
                    )
            except IntegrityError as error:
                raise Refused(
                    Code.NAME_EXISTS,
                    f"there is a manufacturer {name}, or one with this certificate already; a name can be registered "
                    "again for the same CA (subject and key), group and prefix only",
                ) from error
            facts = {"group": group, "name_prefix": name_prefix, "fingerprint_sha256": fingerprint}
            audit.append(connection, now, by, Action.MANUFACTURER_ADDED, name, facts)
            return _known(manufacturers.find_named(connection, name), name)

        stored = await self._database.write(record)
        await self._trust_changed()
        log.info("manufacturer added", manufacturer=name, group=group, fingerprint=fingerprint, by=by)
        return stored

    async def end(self, name: str, *, by: str) -> StoredManufacturer:
        """End the trust in a manufacturer: its certificates admit no more devices. Devices already enrolled stay."""

        def record(connection: Connection) -> StoredManufacturer:
            now = self._clock()
            if manufacturers.end(connection, name, now):
                audit.append(connection, now, by, Action.MANUFACTURER_ENDED, name, {})
            return _known(manufacturers.find_named(connection, name), name)

        ended = await self._database.write(record)
        await self._trust_changed()
        log.info("manufacturer ended", manufacturer=name, by=by)
        return ended

    async def change(self, name: str, change: ManufacturerChange, *, by: str) -> StoredManufacturer:
        """Apply *change* to a manufacturer's settings; raise `Refused`."""
        urls = None if change.list_urls is None else _checked(change.list_urls)

        def record(connection: Connection) -> tuple[StoredManufacturer, Mapping[str, object]]:
            known = _known(manufacturers.find_named(connection, name, for_update=True), name)
            lapsed, revoked = known.lapsed_lists, known.revoked_devices
            facts: dict[str, object] = {}
            if change.lapsed_lists not in {None, lapsed}:
                lapsed = LapsedLists(change.lapsed_lists)
                facts["lapsed_lists"] = lapsed.value
            if change.revoked_devices not in {None, revoked}:
                revoked = RevokedDevices(change.revoked_devices)
                facts["revoked_devices"] = revoked.value
                if revoked.is_stricter_than(known.revoked_devices):
                    recalls.forget_of(connection, known.id)  # Devices treated more mildly before are treated anew.
            if urls is not None and manufacturer_list_urls.put(connection, known.id, urls, self._clock()):
                facts["list_urls"] = urls
            if facts:
                manufacturers.set_terms(connection, known.id, lapsed, revoked)
                audit.append(connection, self._clock(), by, Action.MANUFACTURER_CHANGED, name, facts)
            return _known(manufacturers.find_named(connection, name), name), facts

        changed, facts = await self._database.write(record)
        log.info("manufacturer changed", manufacturer=name, by=by, **facts)
        return changed

    async def revoked(self, name: str, *, limit: int, after: str | None) -> Sequence[RecalledDevice]:
        """Return devices whose manufacturer has revoked their IDevID, in order of name, after the name *after*."""

        def read(connection: Connection) -> Sequence[RecalledDevice]:
            known = _known(manufacturers.find_named(connection, name), name)
            return recalls.page(connection, known.id, limit=limit, after=after)

        return await self._database.read(read)

    async def find(self, name: str) -> StoredManufacturer:
        """Return the manufacturer called *name*; raise `Refused` if there is none."""
        found = await self._database.read(lambda connection: manufacturers.find_named(connection, name))
        return _known(found, name)

    async def page(self, *, limit: int, after: str | None) -> list[StoredManufacturer]:
        """Return manufacturers in order of name, after the name *after*."""
        return list(
            await self._database.read(lambda connection: manufacturers.page(connection, limit=limit, after=after))
        )


def _ca(pem: str, now: datetime) -> x509.Certificate:
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
        if len(found) != 1:
            raise invalid(f"certificate holds {len(found)} certificates: give the one CA that issues the IDevIDs")
        (certificate,) = found
        key = certificate.public_key()
        certificate.subject.public_bytes()
        check_readable(certificate)
        wrong = _unfit(certificate.extensions)
        # The listeners' anchors are loaded together: one that OpenSSL cannot read would leave them without any.
        client_context(certificate.public_bytes(Encoding.PEM).decode())
    except _UNREADABLE as error:
        if why := null_in(pem.encode(errors="replace")):
            raise invalid(f"certificate cannot be read: {why}") from error
        raise invalid(f"certificate is not one PEM certificate ({str(error).partition('. See http')[0]})") from error
    if wrong:
        raise invalid(f"certificate {wrong}")
    if now > certificate.not_valid_after_utc:
        raise invalid(f"certificate expired on {certificate.not_valid_after_utc:%Y-%m-%d}: no device can enrol with it")
    match key:
        case ec.EllipticCurvePublicKey() | ed25519.Ed25519PublicKey():
            pass
        case rsa.RSAPublicKey(key_size=bits) if bits >= _MINIMUM_RSA_BITS:
            pass
        case _:
            raise invalid("certificate has a weak key, or one of a kind that is not supported")
    try:
        _KEYS.check_shown(key)
    except WeakKey as error:
        raise invalid(f"certificate has a weak key: {error}") from error
    return certificate


def _unfit(extensions: x509.Extensions) -> str | None:
    """Return why a certificate with these *extensions* is not that of a CA whose devices TLS accepts."""
    values = {type(each.value): each.value for each in extensions}
    constraints, usage = values.get(x509.BasicConstraints), values.get(x509.KeyUsage)
    purposes = values.get(x509.ExtendedKeyUsage)
    unknown = [
        each.oid.dotted_string
        for each in extensions
        if each.critical and isinstance(each.value, x509.UnrecognizedExtension)
    ]
    if not isinstance(constraints, x509.BasicConstraints):
        return "is not that of a CA: it has no Basic Constraints"
    if not constraints.ca:
        return "is not that of a CA: register the CA that issues the IDevIDs, not an IDevID"
    if isinstance(usage, x509.KeyUsage) and not usage.key_cert_sign:
        return "is that of a CA which may sign no certificates: its Key Usage lacks keyCertSign"
    if isinstance(purposes, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
        return "is that of a CA which may certify no TLS clients: its Extended Key Usage lacks clientAuth"
    if unknown:
        return f"has an unknown critical extension, {unknown[0]}"
    return None


def _comes_again(known: StoredManufacturer, certificate: x509.Certificate, group: str, name_prefix: str) -> bool:
    """Whether *certificate* belongs to the same CA as *known*, and is not the one in force already.

    It has the same key, and the issuer name in devices' certificates, by which the manufacturer is found.
    """
    before = x509.load_der_x509_certificate(known.der)
    return (
        (known.group, known.name_prefix) == (group, name_prefix)
        and before.public_key() == certificate.public_key()
        and before.subject == certificate.subject
        and (known.ended_at is not None or before != certificate)
    )


def _checked(urls: Sequence[str]) -> list[str]:
    if len(urls) > MAXIMUM_URLS:
        raise invalid(f"list_urls names {len(urls)} URLs, {MAXIMUM_URLS} at most")
    try:
        return list(dict.fromkeys(map(check_list_url, urls)))
    except ValueError as error:
        raise invalid(f"list_urls: {error}") from error


def _known(stored: StoredManufacturer | None, name: str) -> StoredManufacturer:
    if stored is None:
        raise Refused(Code.MANUFACTURER_UNKNOWN, f"no manufacturer is called {name[:80]!r}")
    return stored
