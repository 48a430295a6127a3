"""Enrolment: the whole story of a certificate, from a stranger's request to a row in the store.

Theory
------
First enrolment (a one-time token) and re-enrolment (the certificate to be replaced) differ only in the credential. One
function, `_authorise`, decides both, so no rule can hold on one path and be forgotten on the other::

    verify the request -> take a serial number that is on disk -> BEGIN
        authorise (token or certificate, device, names) -> the key is nobody else's -> prepare -> sign -> record, spend
    COMMIT -> hand out

The audit log has an entry before and after the signature; if it cannot be written, nothing is signed.

Rules
-----
1. Nothing is handed out before it is committed; nothing is signed under a serial number that is not on disk.
2. A token is spent in the transaction that records its certificate: once, under any concurrency, and never for nothing.
3. Status is read from the primary store inside that transaction: a revocation that has committed is seen.
4. The server builds identity, subject and names. Enrolment takes a name and a key from the request, and other names
   where the profile honours them; re-enrolment wants subject and names equal to the certificate's, byte for byte
   (RFC 7030 §4.2.2), and gives what the profile allows now.
5. A key belongs to one device, and a compromised key to none.

Handles: authorisation, issuance, recording. Does not handle: HTTP, base64, who makes tokens.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, assert_never

import structlog
from cryptography import x509
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from provisioning.ca.csr import VerifiedRequest, apply_profile, verify_csr
from provisioning.ca.issuer import IssuanceRequest, Issuer
from provisioning.ca.key_policy import KeyPolicy
from provisioning.ca.name_policy import SubjectNames, addresses_of
from provisioning.ca.profile import Profile, ProfileName
from provisioning.enrolment.authentication import authenticate
from provisioning.enrolment.tokens import digest_of
from provisioning.errors import Code, Refused
from provisioning.pki.identity import Identity, Role
from provisioning.pki.keys import spki_fingerprint
from provisioning.store import audit, certificates, device_keys, devices, serials, tokens
from provisioning.store.audit import Action
from provisioning.store.crl_shards import CrlShard
from provisioning.store.database import Database
from provisioning.store.devices import Device, DeviceState
from provisioning.store.serials import Reservation, SerialNumbers
from provisioning.store.tokens import StoredToken

log = structlog.get_logger(__name__)


_BARRED: Final = frozenset({DeviceState.SUSPENDED, DeviceState.DECOMMISSIONED})
"""States in which no token and no certificate earns a new certificate."""


@dataclass(frozen=True, slots=True)
class TokenCredential:
    """HTTP Basic: the user name, and the token as the password."""

    user: str
    token: str

    def __repr__(self) -> str:
        """Leave the token out: representations end in logs."""
        return f"TokenCredential(user={self.user!r})"


@dataclass(frozen=True, slots=True)
class CertificateCredential:
    """The certificate that the client presented in TLS, None if it presented none."""

    certificate: x509.Certificate | None


EnrolmentCredential = TokenCredential | CertificateCredential


@dataclass(frozen=True, slots=True)
class _Authorised:
    """Who will be certified, and what pays for it."""

    device: Device
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, ...] = ()
    token: StoredToken | None = None


class EnrolmentService:
    """Decides who gets a certificate, and issues it."""

    def __init__(
        self,
        *,
        database: Database,
        issuer: Issuer,
        serial_numbers: SerialNumbers,
        profiles: Mapping[str, Profile],
        trust_domain: str,
        clock: Callable[[], datetime],
        crl_shards: Sequence[CrlShard] = (),
        key_policy: KeyPolicy | None = None,
    ) -> None:
        """*crl_shards* are those that a new certificate may belong to; without any, the issuer's one list holds all."""
        self._crl_shards = crl_shards
        self._key_policy = key_policy or KeyPolicy()
        self._database = database
        self._issuer = issuer
        self._serial_numbers = serial_numbers
        self._profiles = profiles
        self._trust_domain = trust_domain
        self._clock = clock

    async def enrol(self, csr_der: bytes, credential: TokenCredential, label: str | None = None) -> x509.Certificate:
        """Return a first certificate for whom a token vouches; raise `Refused`."""
        return await self._certify(csr_der, credential, label)

    async def reenrol(
        self, csr_der: bytes, credential: CertificateCredential, label: str | None = None
    ) -> x509.Certificate:
        """Return a successor of the presented certificate, with the same key or a new one; raise `Refused`."""
        return await self._certify(csr_der, credential, label)

    async def _certify(self, csr_der: bytes, credential: EnrolmentCredential, label: str | None) -> x509.Certificate:
        try:
            certificate = await self._issue(csr_der, credential, label)
        except Refused as refusal:
            log.info("enrolment refused", code=refusal.code.value, detail=refusal.detail, credential=repr(credential))
            raise
        log.info(
            "certificate issued",
            subject=certificate.subject.rfc4514_string(),
            serial=serials.serial_text(certificate.serial_number),
            not_after=certificate.not_valid_after_utc,
        )
        return certificate

    async def _issue(self, csr_der: bytes, credential: EnrolmentCredential, label: str | None) -> x509.Certificate:
        request = verify_csr(csr_der, self._key_policy)
        async with self._serial_numbers.reservation(self._clock()) as reservation:
            return await self._database.write(
                lambda connection: self._transaction(connection, credential, request, label, reservation)
            )

    def _transaction(
        self,
        connection: Connection,
        credential: EnrolmentCredential,
        request: VerifiedRequest,
        label: str | None,
        reservation: Reservation,
    ) -> x509.Certificate:
        now = self._clock()
        authorised = _authorise(connection, credential, request, label, now)
        device, token = authorised.device, authorised.token
        _check_key(connection, device, request)
        shard = secrets.choice(self._crl_shards) if self._crl_shards else None
        profile = self._profiles[ProfileName(device.role)]
        identity = Identity(self._trust_domain, device.role, device.name, device.group)
        held = SubjectNames(authorised.dns_names, authorised.ip_addresses)
        names = apply_profile(request, profile, identity, held)
        prepared = self._issuer.prepare(
            profile,
            IssuanceRequest(
                identity,
                request.public_key,
                reservation.serial,
                now,
                names.dns_names,
                names.ip_addresses,
                token.grant.lifetime if token is not None else None,
                None if shard is None else shard.url,
                names.attributes,
            ),
        )
        serial = serials.serial_text(reservation.serial)
        facts = {"serial": serial, "role": device.role.value, "group": device.group}
        by = device.name if token is None else token.created_by
        facts["paid_with"] = "certificate" if token is None else "token"
        audit.append(connection, now, by, Action.SIGNING_CERTIFICATE, device.name, facts)
        reservation.burnt = True
        certificate = self._issuer.issue(prepared)
        serials.use(connection, reservation.serial)
        shard_id = None if shard is None else shard.id  # For ever: the list's address is in the certificate.
        certificate_id = certificates.add(connection, certificate, device.id, now, shard_id)
        signed = {"serial": serial, "not_after": certificate.not_valid_after_utc}
        audit.append(connection, now, by, Action.CERTIFICATE_SIGNED, device.name, signed)
        if token is not None:
            _spend(connection, token, certificate_id, now)
        return certificate


def _authorise(
    connection: Connection,
    credential: EnrolmentCredential,
    request: VerifiedRequest,
    label: str | None,
    now: datetime,
) -> _Authorised:
    """Decide whether this credential gets a certificate for this request now; raise `Refused` if not."""
    match credential:
        case TokenCredential():
            authorised = _authorise_token(connection, credential, request, now)
        case CertificateCredential(certificate):
            authorised = _authorise_successor(connection, certificate, request, now)
        case _:
            assert_never(credential)
    if label is not None and label != authorised.device.group:
        raise Refused(
            Code.TOKEN_GROUP,
            f"{authorised.device.name} belongs to group {authorised.device.group}, not {label}: "
            "use its own label, or none",
        )
    return authorised


def _authorise_token(
    connection: Connection, credential: TokenCredential, request: VerifiedRequest, now: datetime
) -> _Authorised:
    token = tokens.find(connection, digest_of(credential.token))
    if token is None:
        raise Refused(Code.TOKEN_UNKNOWN, "no such enrolment token: check that it was copied whole")
    _check_usable(token, now)
    grant = token.grant
    name = request.common_name
    if grant.device is not None and not grant.device == name == credential.user:
        raise Refused(
            Code.TOKEN_DEVICE,
            f"the token is for {grant.device}: user name ({credential.user[:80]!r}) and Common Name ({name!r}) "
            "must both be that",
        )
    device = devices.find(connection, name, for_update=True)
    if device is None:
        device = _add_device(connection, name, grant.role, grant.group, now)
    elif grant.device is None:
        raise Refused(
            Code.NAME_TAKEN,
            f"{name} is enrolled already and a group's token admits new devices only: ask for a token bound to {name}",
        )
    elif (device.role, device.group) != (grant.role, grant.group):
        raise Refused(
            Code.NAME_TAKEN,
            f"{name} is a {device.role} of group {device.group} and stays one: ask for a token for that role and "
            "group, or choose another name",
        )
    elif device.state in _BARRED:
        raise _barred(device)
    elif device.state is DeviceState.REVOKED:
        # A token made after the revocation (older ones are void) is the operator's word that it may come back.
        devices.set_state(connection, device.id, DeviceState.ACTIVE, now)
    addresses = tuple(ipaddress.ip_address(address) for address in grant.ip_addresses)
    return _Authorised(device, grant.dns_names, addresses, token)


def _barred(device: Device) -> Refused:
    if device.state is DeviceState.SUSPENDED:
        return Refused(Code.DEVICE_SUSPENDED, f"{device.name} is suspended: an operator has to resume it first")
    return Refused(
        Code.DEVICE_DECOMMISSIONED, f"{device.name} was decommissioned for ever: enrol the device under another name"
    )


def _check_usable(token: StoredToken, now: datetime) -> None:
    if token.used_at is not None:
        raise Refused(Code.TOKEN_USED, "this enrolment token was used already: ask for a new one")
    if token.voided_at is not None:
        raise Refused(Code.TOKEN_VOID, "the device was revoked after this token was made: ask for a new one")
    if now >= token.expires_at:
        raise Refused(
            Code.TOKEN_EXPIRED,
            f"this enrolment token expired on {token.expires_at:%Y-%m-%d %H:%M:%S} UTC: ask for a new one",
        )


def _add_device(connection: Connection, name: str, role: Role, group: str | None, now: datetime) -> Device:
    try:
        return devices.add(connection, name, role, group, now)
    except IntegrityError as error:  # PostgreSQL: another transaction added it since we looked.
        raise Refused(Code.NAME_TAKEN, f"{name} has just been enrolled by somebody else") from error


def _authorise_successor(
    connection: Connection, certificate: x509.Certificate | None, request: VerifiedRequest, now: datetime
) -> _Authorised:
    stored = authenticate(connection, certificate, now, for_update=True)
    if certificate is None:
        raise AssertionError("authenticate refuses a missing certificate")
    if stored.device.state in _BARRED:
        raise _barred(stored.device)
    if stored.device.state is DeviceState.REVOKED:
        raise Refused(Code.CERTIFICATE_REVOKED, f"{stored.device.name} was revoked: ask an operator for a new token")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    for field, asked, held in (
        ("subject", request.subject, certificate.subject.public_bytes()),
        ("Subject Alternative Name", request.subject_alternative_name, names.public_bytes()),
    ):
        if asked != held:
            raise Refused(
                Code.CSR_SUBJECT_CHANGED,
                f"the request's {field} is not the certificate's: copy it from the certificate unchanged",
            )
    return _Authorised(
        stored.device,
        tuple(names.get_values_for_type(x509.DNSName)),
        addresses_of(names),
    )


def _check_key(connection: Connection, device: Device, request: VerifiedRequest) -> None:
    fingerprint = spki_fingerprint(request.public_key)
    if device_keys.claim(connection, fingerprint, device.id) != device.id:
        raise Refused(Code.KEY_REUSED, "another device uses this key: make a new key on each device")
    if certificates.key_compromised(connection, fingerprint):
        raise Refused(Code.KEY_REUSED, "this key was reported as compromised: make a new key")


def _spend(connection: Connection, token: StoredToken, certificate_id: int, now: datetime) -> None:
    if not tokens.spend(connection, token.id, certificate_id, now):
        raise Refused(Code.TOKEN_USED, "this enrolment token was used already: ask for a new one")
