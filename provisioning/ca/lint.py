"""Checks on a certificate that is about to be signed: a second opinion, written apart from the code that builds it.

Theory
------
The issuer signs the finished fields with a throw-away key and hands the result here; only a certificate without
findings is signed with the real key. A mistake in the builder or the configuration is so caught before it is a
certificate that somebody trusts. Each check is a function from the certificate and what was intended to findings.

Rules
-----
1. A check reads the certificate's own bytes, never the builder's state.
2. No I/O and no clock.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from cryptography import x509
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, ExtensionOID, NameOID

from provisioning.ca.name_policy import SubjectNames
from provisioning.ca.profile import DIGITAL_SIGNATURE, Profile
from provisioning.pki.identity import Identity, InvalidIdentity, identity_of
from provisioning.pki.keys import key_identifier

_SERIAL_BITS: Final = range(64, 160)  # CA/Browser Forum BR §7.1 from below, RFC 5280 §4.1.2.2 (20 octets) from above.

_EXTENSIONS: Final = {
    # RFC 5280 §4.2: the extension, and whether it is critical.
    ExtensionOID.BASIC_CONSTRAINTS: True,
    ExtensionOID.KEY_USAGE: True,
    ExtensionOID.EXTENDED_KEY_USAGE: False,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME: False,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER: False,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER: False,
}
_OPTIONAL_EXTENSIONS: Final = {
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


@dataclass(frozen=True, slots=True)
class Intent:
    """What the certificate is meant to be."""

    profile: Profile
    identity: Identity
    issuer: x509.Certificate
    names: SubjectNames


def lint(certificate: x509.Certificate, intent: Intent) -> list[str]:
    """Return every finding, each a sentence; an empty list means that the certificate may be signed."""
    return [finding for check in _CHECKS for finding in check(certificate, intent)]


def lint_ocsp_signer(certificate: x509.Certificate, issuer: x509.Certificate) -> list[str]:
    """Return every finding in the certificate of a delegated OCSP signer (RFC 6960 §4.2.2.2)."""
    findings = [*_check_serial_number(certificate), *_check_key_identifiers_of(certificate, issuer)]
    if certificate.issuer.public_bytes() != issuer.subject.public_bytes():
        findings.append("the issuer's name is not the issuing CA's subject")
    if not certificate.not_valid_before_utc < certificate.not_valid_after_utc <= issuer.not_valid_after_utc:
        findings.append("it does not live within the issuing CA's life")
    if certificate.not_valid_after_utc - certificate.not_valid_before_utc > _OCSP_SIGNER_LIFE:
        findings.append(f"it cannot be revoked and lives longer than {_OCSP_SIGNER_LIFE.days} days")
    found = {extension.oid: extension.critical for extension in certificate.extensions}
    if found != _OCSP_SIGNER_EXTENSIONS:
        findings.append("its extensions are not those of an OCSP signer")
    for extension in certificate.extensions:
        match extension.value:
            case x509.BasicConstraints(ca=True):
                findings.append("an OCSP signer would become a CA")
            case x509.KeyUsage() as usage if usage != DIGITAL_SIGNATURE:
                findings.append("key usage is not digitalSignature alone")
            case x509.ExtendedKeyUsage() as usages if list(usages) != [ExtendedKeyUsageOID.OCSP_SIGNING]:
                findings.append("extended key usage is not OCSPSigning alone")
            case _:
                pass
    return findings


def _check_serial_number(certificate: x509.Certificate) -> Iterator[str]:
    serial = certificate.serial_number
    if serial <= 0 or serial.bit_length() not in _SERIAL_BITS:
        yield f"serial number has {serial.bit_length()} bits, not {_SERIAL_BITS.start} to {_SERIAL_BITS.stop - 1}"


def _check_serial(certificate: x509.Certificate, _intent: Intent) -> Iterator[str]:
    yield from _check_serial_number(certificate)


def _check_validity(certificate: x509.Certificate, intent: Intent) -> Iterator[str]:
    not_before, not_after = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not_before >= not_after:
        yield "notBefore is not before notAfter"
    if not_after > intent.issuer.not_valid_after_utc:
        yield "notAfter is later than the issuing CA's own"
    if not_after - not_before > intent.profile.life + intent.profile.backdate:
        yield f"the certificate lives longer than the {intent.profile.name} profile allows"


def _check_names(certificate: x509.Certificate, intent: Intent) -> Iterator[str]:
    if certificate.issuer.public_bytes() != intent.issuer.subject.public_bytes():
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
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    intended = 1 + len(intent.names.dns_names) + len(intent.names.ip_addresses)
    if (
        len(list(names)) != intended
        or tuple(names.get_values_for_type(x509.DNSName)) != intent.names.dns_names
        or tuple(names.get_values_for_type(x509.IPAddress)) != intent.names.ip_addresses
    ):
        yield "the Subject Alternative Name holds other names than intended"
    if not intent.profile.names.allows(intent.identity, intent.names):
        yield f"the {intent.profile.name} profile does not allow these names"


def _check_key(certificate: x509.Certificate, intent: Intent) -> Iterator[str]:
    if not intent.profile.takes(certificate.public_key()):
        yield f"the {intent.profile.name} profile certifies no such key, only {intent.profile.keys_taken}"


def _check_pointers(certificate: x509.Certificate, intent: Intent) -> Iterator[str]:
    profile = intent.profile
    told = {
        AuthorityInformationAccessOID.OCSP: profile.ocsp_url,
        AuthorityInformationAccessOID.CA_ISSUERS: profile.issuer_url,
    }
    for extension in certificate.extensions:
        match extension.value:
            case x509.CRLDistributionPoints() if not profile.crl_url:
                yield f"the {profile.name} profile tells no CRL"
            case x509.AuthorityInformationAccess() as descriptions:
                for each in descriptions:
                    if not told.get(each.access_method, False):
                        yield f"the {profile.name} profile does not tell {each.access_method.dotted_string}"
            case _:
                pass


def _check_extensions(certificate: x509.Certificate, _intent: Intent) -> Iterator[str]:
    found = {extension.oid: extension.critical for extension in certificate.extensions}
    for oid in _EXTENSIONS.keys() - found.keys():
        yield f"extension {oid.dotted_string} is missing"
    allowed = _EXTENSIONS | _OPTIONAL_EXTENSIONS
    for oid, critical in found.items():
        if oid not in allowed:
            yield f"extension {oid.dotted_string} is in no profile"
        elif critical != allowed[oid]:
            yield f"extension {oid.dotted_string} has the wrong criticality"


def _check_usage(certificate: x509.Certificate, intent: Intent) -> Iterator[str]:
    for extension in certificate.extensions:
        match extension.value:
            case x509.BasicConstraints(ca=True):
                yield "an end entity would become a CA"
            case x509.KeyUsage() as usage if usage != DIGITAL_SIGNATURE:
                yield "key usage is not digitalSignature alone"
            case x509.ExtendedKeyUsage() as usages if tuple(usages) != intent.profile.extended_key_usages:
                yield f"extended key usage is not the {intent.profile.name} profile's"
            case _:
                pass


def _check_key_identifiers(certificate: x509.Certificate, intent: Intent) -> Iterator[str]:
    yield from _check_key_identifiers_of(certificate, intent.issuer)


def _check_key_identifiers_of(certificate: x509.Certificate, issuer: x509.Certificate) -> Iterator[str]:
    for extension in certificate.extensions:
        match extension.value:
            case x509.SubjectKeyIdentifier(digest=digest) if digest != key_identifier(certificate.public_key()):
                yield "the subject key identifier is not the key's"
            case x509.AuthorityKeyIdentifier(key_identifier=identifier) if identifier != _key_identifier_of(issuer):
                yield "the authority key identifier is not the issuing CA's"
            case _:
                pass


@functools.lru_cache(_ISSUERS_KEPT)
def _key_identifier_of(issuer: x509.Certificate) -> bytes:
    return key_identifier(issuer.public_key())


_CHECKS: Final[tuple[Callable[[x509.Certificate, Intent], Iterator[str]], ...]] = (
    _check_serial,
    _check_validity,
    _check_key,
    _check_names,
    _check_extensions,
    _check_pointers,
    _check_usage,
    _check_key_identifiers,
)
