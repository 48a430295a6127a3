"""Which certificate is to be revoked: named by its serial number, or shown, as one that the store may have lost.

Theory
------
A store that went back (a fail-over without the last commits, an older copy restored) lacks certificates that were
handed out. TLS accepts them, brokers admit them, and by serial number nobody can revoke what the store does not know.
Whoever has such a certificate shows it: the signature of one of our own issuing CAs proves that it was handed out here,
and what it says is all that has to be recorded::

    shown ─► signature of an issuing CA of ours? ─► known? ─ yes ─────────────────────► revoked
                 │ no: CERTIFICATE_FOREIGN            └ no ─► recorded ("adopted") ─► revoked, in the same transaction

Rules
-----
1. What is recorded here is revoked in the same transaction: nothing is ever good because it was shown.
2. A signature counts only under the very CA of the store that the certificate names by key and name. A root's are no
   end entities, and so are refused, as are certificates of CAs.
3. Its key is its device's from then on, as that of every certificate. If it was certified for another device since, the
   certificate is recorded as that one's: one key belongs to one device, so a compromised key ends both.
4. A device that the store does not know is recorded as revoked: it comes back with a token of its own that was made
   later. Earlier ones are void, since it may have spent them in what was lost.
5. It is on the list that it names (`provisioning.store.crl_shards.lost`), and its number is never given again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

from cryptography import x509
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.errors import Code, Refused, invalid
from provisioning.pki.crl import distribution_points
from provisioning.pki.extension import UNUSABLE, check_readable, extension
from provisioning.pki.identity import Identity, InvalidIdentity, identity_of
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.revocation import certificate_key
from provisioning.pki.serial_number import serial_text
from provisioning.store import (
    audit,
    authorities,
    certificates,
    crl_shards,
    device_keys,
    devices,
    group_rooms,
    groups,
    serials,
    tokens,
)
from provisioning.store.audit import Action
from provisioning.store.certificates import IssuedCertificate, StoredCertificate
from provisioning.store.certificates_of_key import DeviceKey, key_of
from provisioning.store.devices import Device, DeviceState

LONGEST_PEM: Final = 16 * 1024
"""Most characters of a certificate that is shown: one with thirty-two names has some three thousand."""

Clock = Callable[[], datetime]


class NamedCertificate(Protocol):
    """A certificate that is to be revoked."""

    @property
    def serial(self) -> str:
        """Its serial number, as the store writes it."""

    def locked(self, connection: Connection, clock: Clock, by: str) -> StoredCertificate:
        """Return it, with its device locked until the transaction ends, which revokes it; raise `Refused`."""

    def key(self, connection: Connection) -> DeviceKey:
        """Return its key, and whose it is; raise `Refused`."""


@dataclass(frozen=True, slots=True)
class BySerial:
    """A certificate that the store knows."""

    serial: str

    def locked(self, connection: Connection, _clock: Clock, _by: str) -> StoredCertificate:
        """Return it; raise `Refused` if there is none."""
        return certificates.with_serial(connection, self.serial, for_update=True)

    def key(self, connection: Connection) -> DeviceKey:
        """Return its key; raise `Refused` if there is no such certificate."""
        return key_of(certificates.with_serial(connection, self.serial))


@dataclass(frozen=True, slots=True)
class Shown:
    """A certificate that was shown, whether or not the store knows it."""

    certificate: x509.Certificate
    issued: IssuedCertificate

    @property
    def serial(self) -> str:
        """Its serial number, as the store writes it."""
        return serial_text(self.issued.serial)

    def locked(self, connection: Connection, clock: Clock, by: str) -> StoredCertificate:
        """Return it, recorded now if the store lacks it; raise `Refused` unless an issuing CA of ours has signed it."""
        issuer = self._issuer(connection)
        stored = self._stored(connection)
        if stored is not None:
            return stored
        device = devices.find(connection, self._whose(connection), for_update=True)
        stored = self._stored(connection)  # Another process may have recorded it while this one waited for the device.
        return stored if stored is not None else self._adopted(connection, issuer, device, clock(), by)

    def key(self, connection: Connection) -> DeviceKey:
        """Return its key, whose device is known; raise `Refused` otherwise."""
        self._issuer(connection)
        stored = certificates.find(connection, self.issued.issuer_key_id, self.issued.serial)
        if stored is not None:
            return key_of(stored)
        device = devices.find(connection, self._whose(connection))
        if device is None:
            raise AssertionError("a key of many certificates is its device's")
        return DeviceKey(device.id, self.issued.spki_sha256)

    def _stored(self, connection: Connection) -> StoredCertificate | None:
        # By its CA and number: what is signed under one number is one certificate, in whichever encoding.
        return certificates.find(connection, self.issued.issuer_key_id, self.issued.serial, for_update=True)

    def _issuer(self, connection: Connection) -> str:
        """Return the name of the issuing CA that has signed it; raise `Refused` if none of ours has."""
        key_id = self.issued.issuer_key_id.hex()
        if not any(is_issued_by(self.certificate, each) for each in authorities.below_root(connection, key_id)):
            raise Refused(
                Code.CERTIFICATE_FOREIGN,
                f"no issuing CA of this service has signed certificate {self.serial}: revoke it at the CA that has, or "
                "withdraw that one from the brokers' trust; ca list shows this service's",
            )
        return authorities.name_of(connection, key_id)

    def _whose(self, connection: Connection) -> str:
        return device_keys.name_of_holder(connection, self.issued.spki_sha256) or self._identity.name

    @property
    def _identity(self) -> Identity:
        try:
            return identity_of(self.certificate)
        except (InvalidIdentity, *UNUSABLE) as error:  # An OCSP signer, say, which lives for hours.
            raise invalid(f"certificate names no device, and is unknown here: {error}") from error

    def _adopted(
        self, connection: Connection, issuer: str, device: Device | None, now: datetime, by: str
    ) -> StoredCertificate:
        """Record it, with what belongs to it."""
        identity, issued = self._identity, self.issued
        facts: dict[str, object] = {"serial": self.serial, "issuer": issuer, "identity": identity.uri}
        if device is None:
            device, voided = _added(connection, identity, now)
            facts |= {"device": "was unknown: recorded as revoked", **({"voided_tokens": voided} if voided else {})}
        devices.stay(connection, device)
        if device.group is not None:  # It counts there, from now on if it was a trial: all are counted again.
            groups.find(connection, device.group, for_update=True)
            group_rooms.forget(connection, device.group)
        if not device_keys.claim(connection, issued.spki_sha256, device.id):
            holder = device_keys.holder(connection, issued.spki_sha256)  # None: a claim's, and so nobody's.
            if holder not in {None, device.id}:
                raise _meanwhile()
        serials.settle(connection, issued.serial)
        points = distribution_points(self.certificate)
        shard = next((found for each in points if (found := crl_shards.lost(connection, issuer, each))), None)
        # When it was issued nobody knows; not after it began.
        certificates.add(connection, issued, device.id, issued.not_before, None if shard is None else shard.id)
        facts |= {"not_after": issued.not_after, "crl": issuer if shard is None else shard.name}
        audit.append(connection, now, by, Action.CERTIFICATE_ADOPTED, device.name, facts)
        stored = self._stored(connection)
        if stored is None:
            raise AssertionError("the certificate has just been recorded")
        return stored


def shown(pem: str) -> Shown:
    """Return the one certificate in *pem*; raise `Refused` if it cannot be one that an issuing CA has handed out."""
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
        if len(found) != 1:
            raise invalid(f"certificate holds {len(found)} certificates: give the one that is to be revoked")
        (certificate,) = found
        check_readable(certificate)
        constraints = extension(certificate, x509.BasicConstraints)
        if constraints is not None and constraints.ca:
            raise invalid("certificate is a CA's: fleet-provisioning ca revoke ends one of this service's")
        certificate_key(certificate)
        return Shown(certificate, certificates.issued(certificate))
    except UNUSABLE as error:
        raise invalid(f"certificate is not one PEM certificate ({str(error).partition('. See http')[0]})") from error


def _added(connection: Connection, identity: Identity, now: datetime) -> tuple[Device, int]:
    """Record whom *identity* names, as revoked; return it, and how many tokens bound to it are void now."""
    voided = tokens.void(connection, identity.name, now)  # Before the device: the store's lock order.
    try:
        device = devices.add(connection, identity.name, identity.role, identity.group, now)
    except IntegrityError as error:  # PostgreSQL: another transaction has added it since.
        raise _meanwhile() from error
    devices.set_state(connection, [device.id], DeviceState.REVOKED, now)
    return device, voided


def _meanwhile() -> Refused:
    return Refused(Code.UNAVAILABLE, "another request has just certified this device or this key: try again")
