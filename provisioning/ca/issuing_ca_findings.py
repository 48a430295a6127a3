"""Checks an issuing CA's certificate: before it is signed here, or before one from elsewhere is accepted.

Theory
------
The keeper of an external root signs with tools that add and omit extensions. A valid CA certificate may still be one
under which no relying party accepts any certificate: that would show only when the first device of the new CA is
refused, after the old one has been retired.

Rules
-----
1. Every finding is reported, not just the first.
2. The CA must suit our own certificates: the subject of the service's and of OCSP signers is a Common Name alone, the
   purposes are those of clients and servers.

Handles: the certificate and its root. Does not handle: whether that root has signed it, other CAs of the fleet, name
constraints on host names, addresses and URIs (`provisioning.ca.permitted_names`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from provisioning.pki.extension import UNREADABLE, extension
from provisioning.pki.keys import key_identifier
from provisioning.pki.serial_number import serial_text

_SERIALS_END: Final = 1 << 159
"""Of 20 octets, the first bit of which is the sign (RFC 5280 §4.1.2.2)."""
_IDENTIFIER_OCTETS: Final = 20
"""By which the store knows whose a certificate is."""
_WEAK_HASHES: Final = frozenset({"md5", "sha1"})
_LEAST_RSA_BITS, _LEAST_EC_BITS = 2048, 224
"""What OpenSSL's security level 2 accepts, which is Debian's: 112 bits."""
_PURPOSES: Final = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
_UNDERSTOOD: Final = frozenset(
    {
        x509.BasicConstraints.oid,
        x509.KeyUsage.oid,
        x509.ExtendedKeyUsage.oid,
        x509.NameConstraints.oid,
        x509.CertificatePolicies.oid,
        x509.InhibitAnyPolicy.oid,
        x509.SubjectAlternativeName.oid,
        x509.CRLDistributionPoints.oid,
    }
)
"""Critical extensions that OpenSSL, GnuTLS and Go accept in a CA's certificate. OpenSSL refuses those that must not be
critical, as key identifiers, and GnuTLS also policy constraints, whatever they say, and policy mappings."""
_UNDERSTOOD_IN_ROOTS: Final = _UNDERSTOOD | {x509.PolicyConstraints.oid}
"""GnuTLS alone refuses them there, and a root cannot be had otherwise: it may be in use already."""
_Found = Mapping[x509.ObjectIdentifier, x509.Extension[x509.ExtensionType]]


def issuing_ca_findings(certificate: x509.Certificate, root: x509.Certificate, now: datetime) -> Iterator[str]:
    """Yield every problem with *certificate* as an issuing CA's under *root*."""
    if certificate.issuer != root.subject or certificate.subject in {root.subject, x509.Name([])}:
        yield "its names are not those of a CA under this root"
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        yield "it is not valid now"
    if certificate.not_valid_after_utc > root.not_valid_after_utc:
        yield "it expires after its root"
    if not 0 < certificate.serial_number < _SERIALS_END:
        serial = serial_text(certificate.serial_number)
        yield f"its serial number {serial} is none: have it signed with one of 1 to 20 octets"
    if (hash_algorithm := _hash_of(certificate)) in _WEAK_HASHES:
        yield f"it is signed with {hash_algorithm}, which is too weak for TLS: have it signed with SHA-256"
    yield from _about_root(root, now)
    try:
        found: _Found = {each.oid: each for each in certificate.extensions}
        above: _Found = {each.oid: each for each in root.extensions}
    except UNREADABLE as error:
        yield f"its extensions, or those of its root, cannot be read ({error})"
        return
    yield from _what_it_may(found)
    yield from _keys(found, certificate, root)
    if (octets := len(identifier_of(root))) > _IDENTIFIER_OCTETS:
        yield f"its root's subject key identifier has {octets} octets, {_IDENTIFIER_OCTETS} at most"
    yield from _what_its_certificates_may(found, "its", _UNDERSTOOD)
    yield from _what_its_certificates_may(above, "its root's", _UNDERSTOOD_IN_ROOTS)
    yield from _what_root_may(above)


def _about_root(root: x509.Certificate, now: datetime) -> Iterator[str]:
    if not _is_root(root):
        issuer = root.issuer.rfc4514_string()
        yield f"its root is none: it was issued by {issuer}, or by another key of that name, and is no end of a path"
    if now < root.not_valid_before_utc:
        yield "its root is not valid yet"
    if (size := _size_of_weak(root.public_key())) is not None:
        yield f"its root's key has {size} bits, which is too weak for TLS"


def _is_root(root: x509.Certificate) -> bool:
    """Whether it is the end of a path, as OpenSSL sees it; nobody verifies with what a root has signed itself."""
    if root.issuer != root.subject:
        return False
    try:
        root.verify_directly_issued_by(root)
    except InvalidSignature:
        return False
    except (ValueError, TypeError, UnsupportedAlgorithm):  # By SHA-1, say: it was usual for roots of 2015.
        return True
    return True


def _size_of_weak(key: object) -> int | None:
    match key:
        case rsa.RSAPublicKey(key_size=size) if size < _LEAST_RSA_BITS:
            return size
        case ec.EllipticCurvePublicKey(key_size=size) if size < _LEAST_EC_BITS:
            return size
        case _:
            return None


def _hash_of(certificate: x509.Certificate) -> str | None:
    try:
        algorithm = certificate.signature_hash_algorithm
    except UnsupportedAlgorithm:  # Then it is found not to be issued by its root.
        return None
    return None if algorithm is None else algorithm.name


def _what_root_may(above: _Found) -> Iterator[str]:
    usage = above.get(x509.KeyUsage.oid)
    if usage is not None and isinstance(usage.value, x509.KeyUsage) and not usage.value.key_cert_sign:
        yield "its root's key usage does not include keyCertSign"
    constraints = above.get(x509.BasicConstraints.oid)
    if constraints is None or not isinstance(constraints.value, x509.BasicConstraints) or not constraints.value.ca:
        yield "its root is not a CA by its basic constraints"
    elif constraints.value.path_length == 0:
        yield "its root may have no CA under it: its root's path length is 0"


def identifier_of(authority: x509.Certificate) -> bytes:
    """Return by which key identifier a CA is named in what it signs: its subject key identifier, if it has one.

    That of an imported root need not be the SHA-1 of its key (RFC 7093).
    """
    named = extension(authority, x509.SubjectKeyIdentifier)
    return key_identifier(authority.public_key()) if named is None else named.digest


def authority_key(root: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    """Return the authority key identifier of what *root* signs."""
    return x509.AuthorityKeyIdentifier(identifier_of(root), None, None)


def _what_it_may(found: _Found) -> Iterator[str]:
    constraints = found.get(x509.BasicConstraints.oid)
    if constraints is None or not constraints.critical or constraints.value != x509.BasicConstraints(True, 0):
        yield "its basic constraints are not critical, CA:TRUE, pathlen:0"
    usage = found.get(x509.KeyUsage.oid)
    if not (
        usage is not None
        and usage.critical
        and isinstance(usage.value, x509.KeyUsage)
        and usage.value.key_cert_sign
        and usage.value.crl_sign
    ):
        yield "its key usage is not critical with keyCertSign and cRLSign"
    policies = found.get(x509.PolicyConstraints.oid)
    if policies is not None and getattr(policies.value, "require_explicit_policy", None) is not None:
        yield "its policy constraints demand a certificate policy, of which ours have none"


def _keys(found: _Found, certificate: x509.Certificate, root: x509.Certificate) -> Iterator[str]:
    identifier = found.get(x509.SubjectKeyIdentifier.oid)
    if identifier is None or identifier.value != x509.SubjectKeyIdentifier(key_identifier(certificate.public_key())):
        yield "its subject key identifier is not the SHA-1 of its key, which OCSP and CRLs here go by"
    authority = found.get(x509.AuthorityKeyIdentifier.oid)
    if (
        authority is None
        or not isinstance(authority.value, x509.AuthorityKeyIdentifier)
        or authority.value.key_identifier != identifier_of(root)
    ):
        yield "its authority key identifier is not the root's key"


def _what_its_certificates_may(
    found: _Found, whose: str, understood: Collection[x509.ObjectIdentifier]
) -> Iterator[str]:
    """Yield why relying parties would not accept the certificates issued below it."""
    for each in found.values():
        if each.critical and each.oid not in understood:
            yield (
                f"{whose} extension {each.oid.dotted_string} is critical, and OpenSSL or GnuTLS does not accept that: "
                "have it signed without it, or not as critical"
            )
        match each.value:
            case x509.ExtendedKeyUsage() as purposes if not set(purposes) >= _PURPOSES:
                yield f"{whose} extended key usage lacks clientAuth or serverAuth: TLS would refuse its certificates"
            case x509.NameConstraints(permitted_subtrees=permitted) if any(map(_is_a_directory_name, permitted or ())):
                yield f"{whose} name constraints permit subjects that ours are not: a Common Name alone"


def _is_a_directory_name(name: x509.GeneralName) -> bool:
    return isinstance(name, x509.DirectoryName) and bool(list(name.value))
