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

Handles: the certificate and its root. Does not handle: signatures, other CAs of the fleet, name constraints on DNS
names, addresses and URIs, which affect only some certificates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from provisioning.pki.extension import UNREADABLE, extension
from provisioning.pki.keys import key_identifier

_PURPOSES: Final = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
_Found = Mapping[x509.ObjectIdentifier, x509.Extension[x509.ExtensionType]]


def issuing_ca_findings(certificate: x509.Certificate, root: x509.Certificate, now: datetime) -> Iterator[str]:
    """Yield every problem with *certificate* as an issuing CA's under *root*."""
    if certificate.issuer != root.subject or certificate.subject in {root.subject, x509.Name([])}:
        yield "its names are not those of a CA under this root"
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        yield "it is not valid now"
    if certificate.not_valid_after_utc > root.not_valid_after_utc:
        yield "it expires after its root"
    try:
        found: _Found = {each.oid: each for each in certificate.extensions}
        above: _Found = {each.oid: each for each in root.extensions}
    except UNREADABLE as error:
        yield f"its extensions, or those of its root, cannot be read ({error})"
        return
    yield from _what_it_may(found)
    yield from _keys(found, certificate, root)
    yield from _what_its_certificates_may(found, "its")
    yield from _what_its_certificates_may(above, "its root's")
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


def _what_its_certificates_may(found: _Found, whose: str) -> Iterator[str]:
    """Yield why relying parties would not accept the certificates issued below it."""
    for each in found.values():
        match each.value:
            case x509.ExtendedKeyUsage() as purposes if not set(purposes) >= _PURPOSES:
                yield f"{whose} extended key usage lacks clientAuth or serverAuth: TLS would refuse its certificates"
            case x509.NameConstraints(permitted_subtrees=permitted) if any(map(_is_a_directory_name, permitted or ())):
                yield f"{whose} name constraints permit subjects that ours are not: a Common Name alone"
            case x509.UnrecognizedExtension() if each.critical:
                yield f"{whose} extension {each.oid.dotted_string} is critical, and no relying party knows it"


def _is_a_directory_name(name: x509.GeneralName) -> bool:
    return isinstance(name, x509.DirectoryName) and bool(list(name.value))
