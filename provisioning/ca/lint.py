"""Checks on a certificate that is about to be signed: a second opinion, independent of the code that builds it.

Theory
------
The issuer passes the finished fields as a certificate with a dummy signature; it is signed only if there are no
findings. So a mistake in the builder or the configuration is caught before it becomes a trusted certificate. Each
check is a function from the certificate and the intent to findings.

Rules
-----
1. A check reads the certificate's own bytes, never the builder's state.
2. No I/O and no clock.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, ExtensionOID, NameOID

from provisioning.ca.name_policy import SubjectNames
from provisioning.ca.profile import DIGITAL_SIGNATURE, Profile
from provisioning.pki.identity import Identity, InvalidIdentity, identity_of
from provisioning.pki.keys import key_identifier, spki_of
from provisioning.quick_values import quickly_made

E = TypeVar("E", bound=x509.ExtensionType)

SERIAL_BITS: Final = range(64, 160)  # Lower bound: CA/Browser Forum BR §7.1; upper: RFC 5280 §4.1.2.2 (20 octets).

_EXTENSIONS: Final = {
    # RFC 5280 §4.2: the extension, and whether it is critical.
    ExtensionOID.BASIC_CONSTRAINTS: True,
    ExtensionOID.KEY_USAGE: True,
    ExtensionOID.EXTENDED_KEY_USAGE: False,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME: False,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER: False,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER: False,
}
_ALLOWED_EXTENSIONS: Final = _EXTENSIONS | {
    ExtensionOID.CRL_DISTRIBUTION_POINTS: False,
    ExtensionOID.AUTHORITY_INFORMATION_ACCESS: False,
}
_OCSP_SIGNER_EXTENSIONS: Final = {
    ExtensionOID.BASIC_CONSTRAINTS: True,
    ExtensionOID.KEY_USAGE: True,
    ExtensionOID.EXTENDED_KEY_USAGE: False,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER: False,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER: False,
    ExtensionOID.OCSP_NO_CHECK: False,
}
_ISSUERS_KEPT: Final = 16
_OCSP_SIGNER_LIFE: Final = timedelta(days=31)


@quickly_made
@dataclass(frozen=True, slots=True)
class Made:
    """A certificate's own values: its serial number, notBefore and notAfter, and its SubjectPublicKeyInfo."""

    serial: int
    not_before: datetime
    not_after: datetime
    spki: bytes


@quickly_made
@dataclass(frozen=True, slots=True)
class Intent:
    """What the certificate is meant to be."""

    profile: Profile
    identity: Identity
    issuer: x509.Certificate
    names: SubjectNames
    made: Made | None = None
    """None: these values are not checked."""


class _Read:
    """A certificate whose extensions are parsed once for all checks."""

    def __init__(self, certificate: x509.Certificate) -> None:
        extensions = certificate.extensions
        self.certificate = certificate
        self.public_key = certificate.public_key()
        self.critical = {extension.oid: extension.critical for extension in extensions}
        self._values: dict[type[x509.ExtensionType], Any] = {
            type(extension.value): extension.value for extension in extensions
        }

    def get(self, kind: type[E]) -> E | None:
        """Return the value of the extension of *kind*, None if there is none."""
        value: E | None = self._values.get(kind)
        return value


def lint(certificate: x509.Certificate, intent: Intent) -> list[str]:
    """Return every finding, each a sentence; an empty list means that the certificate may be signed."""
    read = _Read(certificate)
    return [finding for check in _CHECKS for finding in check(read, intent)]


def lint_ocsp_signer(certificate: x509.Certificate, issuer: x509.Certificate) -> list[str]:
    """Return every finding in the certificate of a delegated OCSP signer (RFC 6960 §4.2.2.2)."""
    read = _Read(certificate)
    findings = [*_check_serial_number(certificate), *_check_key_identifiers_of(read, issuer)]
    if certificate.issuer.public_bytes() != issuer.subject.public_bytes():
        findings.append("the issuer's name is not the issuing CA's subject")
    if not certificate.not_valid_before_utc < certificate.not_valid_after_utc <= issuer.not_valid_after_utc:
        findings.append("its validity is not within that of the issuing CA")
    if certificate.not_valid_after_utc - certificate.not_valid_before_utc > _OCSP_SIGNER_LIFE:
        findings.append(f"it cannot be revoked and lives longer than {_OCSP_SIGNER_LIFE.days} days")
    if read.critical != _OCSP_SIGNER_EXTENSIONS:
        findings.append("its extensions are not those of an OCSP signer")
    if _is_ca(read):
        findings.append("an OCSP signer would become a CA")
    if read.get(x509.KeyUsage) not in (None, DIGITAL_SIGNATURE):
        findings.append("key usage is not digitalSignature alone")
    usages = read.get(x509.ExtendedKeyUsage)
    if usages is not None and list(usages) != [ExtendedKeyUsageOID.OCSP_SIGNING]:
        findings.append("extended key usage is not OCSPSigning alone")
    return findings


def _check_serial_number(certificate: x509.Certificate) -> Iterator[str]:
    serial = certificate.serial_number
    if serial <= 0 or serial.bit_length() not in SERIAL_BITS:
        yield f"serial number has {serial.bit_length()} bits, not {SERIAL_BITS.start} to {SERIAL_BITS.stop - 1}"


def _check_serial(read: _Read, _intent: Intent) -> Iterator[str]:
    yield from _check_serial_number(read.certificate)


def _check_made(read: _Read, intent: Intent) -> Iterator[str]:
    if intent.made is None:
        return
    certificate = read.certificate
    dates = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if Made(certificate.serial_number, *dates, spki_of(read.public_key)) != intent.made:
        yield "serial number, dates or key are not those that were chosen"


def _check_validity(read: _Read, intent: Intent) -> Iterator[str]:
    not_before, not_after = read.certificate.not_valid_before_utc, read.certificate.not_valid_after_utc
    if not_before >= not_after:
        yield "notBefore is not before notAfter"
    if not_after > intent.issuer.not_valid_after_utc:
        yield "notAfter is later than the issuing CA's own"
    if not_after - not_before > intent.profile.life + intent.profile.backdate:
        yield f"the certificate lives longer than the {intent.profile.name} profile allows"


def _check_names(read: _Read, intent: Intent) -> Iterator[str]:
    certificate = read.certificate
    if certificate.issuer.public_bytes() != _subject_of(intent.issuer):
        yield "the issuer's name is not the issuing CA's subject"
    *attributes, last = certificate.subject
    if last.oid != NameOID.COMMON_NAME or tuple(attributes) != intent.names.attributes:
        yield "the subject is not the intended attributes and then one Common Name"
    try:
        named = identity_of(certificate)
    except InvalidIdentity as error:
        yield str(error)
        return
    if named != intent.identity:
        yield f"the certificate names {named}, not {intent.identity}"
    if named.role is not intent.profile.role:
        yield f"role {named.role} does not fit the {intent.profile.name} profile"
    names = read.get(x509.SubjectAlternativeName) or ()
    intended = 1 + len(intent.names.dns_names) + len(intent.names.ip_addresses)
    # By exact type: the library's `get_values_for_type` uses abstract base classes, which are slow.
    hosts = tuple(name.value for name in names if type(name) is x509.DNSName)
    addresses = tuple(name.value for name in names if type(name) is x509.IPAddress)
    if (len(list(names)), hosts, addresses) != (intended, intent.names.dns_names, intent.names.ip_addresses):
        yield "the Subject Alternative Name holds other names than intended"
    if not intent.profile.names.allows(intent.identity, intent.names):
        yield f"the {intent.profile.name} profile does not allow these names"


def _check_key(read: _Read, intent: Intent) -> Iterator[str]:
    if not intent.profile.takes(read.public_key):
        yield f"the {intent.profile.name} profile does not accept this kind of key, only {intent.profile.keys_taken}"


def _check_pointers(read: _Read, intent: Intent) -> Iterator[str]:
    profile = intent.profile
    told = {
        AuthorityInformationAccessOID.OCSP: profile.ocsp_url,
        AuthorityInformationAccessOID.CA_ISSUERS: profile.issuer_url,
    }
    if not profile.crl_url and read.get(x509.CRLDistributionPoints) is not None:
        yield f"the {profile.name} profile has no CRL distribution point"
    for each in read.get(x509.AuthorityInformationAccess) or ():
        if not told.get(each.access_method, False):
            yield f"the {profile.name} profile does not have access method {each.access_method.dotted_string}"


def _check_extensions(read: _Read, _intent: Intent) -> Iterator[str]:
    for oid in _EXTENSIONS.keys() - read.critical.keys():
        yield f"extension {oid.dotted_string} is missing"
    for oid, critical in read.critical.items():
        if oid not in _ALLOWED_EXTENSIONS:
            yield f"extension {oid.dotted_string} is in no profile"
        elif critical != _ALLOWED_EXTENSIONS[oid]:
            yield f"extension {oid.dotted_string} has the wrong criticality"


def _check_usage(read: _Read, intent: Intent) -> Iterator[str]:
    if _is_ca(read):
        yield "an end entity would become a CA"
    if read.get(x509.KeyUsage) not in (None, DIGITAL_SIGNATURE):
        yield "key usage is not digitalSignature alone"
    usages = read.get(x509.ExtendedKeyUsage)
    if usages is not None and tuple(usages) != intent.profile.extended_key_usages:
        yield f"extended key usage is not the {intent.profile.name} profile's"


def _is_ca(read: _Read) -> bool:
    constraints = read.get(x509.BasicConstraints)
    return constraints is not None and constraints.ca


def _check_key_identifiers(read: _Read, intent: Intent) -> Iterator[str]:
    yield from _check_key_identifiers_of(read, intent.issuer)


def _check_key_identifiers_of(read: _Read, issuer: x509.Certificate) -> Iterator[str]:
    subject = read.get(x509.SubjectKeyIdentifier)
    if subject is not None and subject.digest != key_identifier(read.public_key):
        yield "the subject key identifier is not the key's"
    authority = read.get(x509.AuthorityKeyIdentifier)
    if authority is not None and authority.key_identifier != _key_identifier_of(issuer):
        yield "the authority key identifier is not the issuing CA's"


@functools.lru_cache(_ISSUERS_KEPT)
def _subject_of(issuer: x509.Certificate) -> bytes:
    return issuer.subject.public_bytes()


@functools.lru_cache(_ISSUERS_KEPT)
def _key_identifier_of(issuer: x509.Certificate) -> bytes:
    return key_identifier(issuer.public_key())


_CHECKS: Final[tuple[Callable[[_Read, Intent], Iterator[str]], ...]] = (
    _check_serial,
    _check_made,
    _check_validity,
    _check_key,
    _check_names,
    _check_extensions,
    _check_pointers,
    _check_usage,
    _check_key_identifiers,
)
