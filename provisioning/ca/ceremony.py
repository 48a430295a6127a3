"""The key ceremony: founds a fleet's root CA and the issuing CA under it, and their successors.

Theory
------
The root signs one thing, the issuing CA, and then rests: its key may leave the machine. The issuing CA signs everything
else. New keys are ECDSA P-256; the issuing CA's path length of 0 allows no CA under it. Roots, and the certificates
between them, have no path length: many TLS libraries count the latter (docs/decisions/0390).

Rules
-----
1. A CA certificate carries no more than RFC 5280 requires: basic constraints and key usage (critical), key
   identifiers, and the addresses of its issuer's CRL and certificate if a public one is known. A root carries none.
2. What a root is about to sign is checked first, in a draft signed with a throw-away key; a certificate signed by a
   root elsewhere is checked in the same way before it is accepted.
3. No I/O and no clock: serial numbers and "now" are arguments.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import NameOID

from provisioning.ca.issuer import IssuerUrls, url_extensions
from provisioning.ca.issuing_ca_findings import authority_key, issuing_ca_findings
from provisioning.ca.key_policy import KeyPolicy, WeakKey
from provisioning.ca.signing import hash_for, throw_away_twin
from provisioning.pki.extension import UNUSABLE, extension
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import PrivateKey, generate_key, key_identifier

ROOT_LIFE: Final = timedelta(days=3652)
ISSUING_LIFE: Final = timedelta(days=1826)
"""Half the root's, so that a successor can be signed while the root has years left."""

_BACKDATE: Final = timedelta(minutes=1)

_CA_KEY_USAGE: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class CeremonyRefused(Exception):
    """A CA's certificate or request that must not be signed or accepted; the text says everything that is wrong."""


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """A CA's certificate and key."""

    certificate: x509.Certificate
    key: PrivateKey


@dataclass(frozen=True, slots=True)
class Authority:
    """A fleet's two CAs."""

    root_ca: CertificateAuthority
    issuing_ca: CertificateAuthority


def found_authority(
    trust_domain: str,
    now: datetime,
    serials: tuple[int, int],
    root_urls: IssuerUrls | None = None,
    keys: tuple[PrivateKey, PrivateKey] | None = None,
) -> Authority:
    """Return a new root and issuing CA for *trust_domain*, for *keys* or for new ones in memory.

    *root_urls*, the addresses of the root's CRL and certificate, go into the issuing CA's certificate.
    """
    now = now.replace(microsecond=0)
    root_key, issuing_key = keys or (generate_key(), generate_key())
    root = _self_signed_root(trust_domain, root_key, serials[0], now)
    issuing = sign_issuing_ca(
        CertificateAuthority(root, root_key),
        IssuingCaRequest(_name(trust_domain, f"Fleetgate issuing CA {now:%Y}"), issuing_key.public_key()),
        serials[1],
        now,
        root_urls,
    )
    return Authority(CertificateAuthority(root, root_key), CertificateAuthority(issuing, issuing_key))


@dataclass(frozen=True, slots=True)
class IssuingCaRequest:
    """The name and key that a root is asked to certify."""

    subject: x509.Name
    public_key: CertificatePublicKeyTypes


def issuing_ca_name(trust_domain: str, number: int, line: str | None = None) -> x509.Name:
    """Return the subject of a fleet's issuing CA with this *number* in its *line*: no two CAs have the same name."""
    return _name(trust_domain, f"Fleetgate issuing CA {'' if line is None else f'{line} '}{number}")


def issuing_ca_csr(subject: x509.Name, key: PrivateKey) -> x509.CertificateSigningRequest:
    """Return the request for an issuing CA, with the extensions that its certificate should have."""
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_CA_KEY_USAGE, critical=True)
        .sign(key, hash_for(key))
    )


def read_issuing_ca_csr(pem: bytes) -> IssuingCaRequest:
    """Return the name and key in a request; raise `CeremonyRefused` unless it is signed with its own, strong key.

    Nor is one signed that asks for no CA: if a device's was taken for a CA's, the device would be one.
    """
    try:
        csr = x509.load_pem_x509_csr(pem)
        public_key, signed = csr.public_key(), csr.is_signature_valid
        asked = extension(csr, x509.BasicConstraints)
    except UNUSABLE as error:
        why = f" ({error})" if b"CERTIFICATE REQUEST-----" in pem else ""  # Else it is about PEM's own form only.
        raise CeremonyRefused(
            f"this is not a PKCS #10 request in PEM{why}: give the file that ca export-csr has written"
        ) from error
    if not signed:
        raise CeremonyRefused("the request is not signed with the key that it contains")
    if asked is None or not asked.ca:
        raise CeremonyRefused(
            f"the request of {csr.subject.rfc4514_string() or 'nobody'} asks for no CA's certificate (basic "
            "constraints CA:TRUE), and whoever has its key would be a CA: give the file that ca export-csr has written"
        )
    _check_key(public_key)
    return IssuingCaRequest(csr.subject, public_key)


def sign_issuing_ca(
    root: CertificateAuthority,
    request: IssuingCaRequest,
    serial: int,
    now: datetime,
    root_urls: IssuerUrls | None = None,
    life: timedelta = ISSUING_LIFE,
) -> x509.Certificate:
    """Return an issuing CA's certificate, checked before it is signed; raise `CeremonyRefused`."""
    now = now.replace(microsecond=0)
    _check_alive(root.certificate, now)
    not_after = min(now + life, root.certificate.not_valid_after_utc)
    builder = (
        _builder(request.subject, root.certificate.subject, request.public_key, serial, (now - _BACKDATE, not_after))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(authority_key(root.certificate), critical=False)
    )
    for each in url_extensions(root_urls):
        builder = builder.add_extension(each, critical=False)
    return _checked_and_signed(builder, root, now)


@dataclass(frozen=True, slots=True)
class RootSuccession:
    """A new root, and the certificates that carry trust between it and the old one (RFC 7030 §4.1.3, RFC 4210 §4.4)."""

    new_root: x509.Certificate
    new_with_old: x509.Certificate
    """The new key certified by the old root: for those who trust only the old root to verify paths to the new one."""
    old_with_new: x509.Certificate
    """The old key certified by the new root: for those who trust only the new root to verify paths to the old one."""


def succeed_root(
    old: CertificateAuthority,
    key: PrivateKey,
    trust_domain: str,
    serials: tuple[int, int, int],
    now: datetime,
    urls: tuple[IssuerUrls | None, IssuerUrls | None] = (None, None),
) -> RootSuccession:
    """Return the successor of *old*, for *key*; raise `CeremonyRefused` if *old* has expired.

    It has the old one's name, so that the path length of an older version's root still suffices. *urls* are those of
    the old root and of the new.
    """
    now = now.replace(microsecond=0)
    _check_alive(old.certificate, now)
    new = CertificateAuthority(_self_signed_root(trust_domain, key, serials[0], now, old.certificate.subject), key)
    new_end, old_end = new.certificate.not_valid_after_utc, old.certificate.not_valid_after_utc

    def cross(
        subject: CertificateAuthority, signer: CertificateAuthority, serial: int, urls: IssuerUrls | None
    ) -> x509.Certificate:
        validity = (now - _BACKDATE, min(new_end, old_end))
        name, public_key = subject.certificate.subject, subject.certificate.public_key()
        builder = (
            _builder(name, signer.certificate.subject, public_key, serial, validity)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(authority_key(signer.certificate), critical=False)
        )
        for each in url_extensions(urls):
            builder = builder.add_extension(each, critical=False)
        return builder.sign(signer.key, hash_for(signer.key))

    of_old, of_new = urls
    return RootSuccession(new.certificate, cross(new, old, serials[1], of_old), cross(old, new, serials[2], of_new))


def check_issuing_ca(certificate: x509.Certificate, root: x509.Certificate, now: datetime) -> None:
    """Raise `CeremonyRefused` naming every reason why *certificate* cannot be an issuing CA's under *root*."""
    findings = list(_findings(certificate, root, now))
    if not is_issued_by(certificate, root):
        findings.append(f"it was not issued by {root.subject.rfc4514_string()}")
    if findings:
        raise CeremonyRefused(f"this is not a certificate for an issuing CA: {'; '.join(findings)}")


def _checked_and_signed(
    builder: x509.CertificateBuilder, root: CertificateAuthority, now: datetime
) -> x509.Certificate:
    twin = throw_away_twin(root.key)
    findings = list(_findings(builder.sign(twin, hash_for(twin)), root.certificate, now))
    if findings:
        raise CeremonyRefused(f"the issuing CA's certificate would be wrong: {'; '.join(findings)}")
    return builder.sign(root.key, hash_for(root.key))


def _findings(certificate: x509.Certificate, root: x509.Certificate, now: datetime) -> Iterator[str]:
    yield from issuing_ca_findings(certificate, root, now)
    try:
        _check_key(certificate.public_key())
    except CeremonyRefused as error:
        yield str(error)


def _check_alive(root: x509.Certificate, now: datetime) -> None:
    if now >= root.not_valid_after_utc:
        raise CeremonyRefused(f"the root expired on {root.not_valid_after_utc:%Y-%m-%d}: it can sign nothing more")


def _check_key(key: CertificatePublicKeyTypes) -> None:
    try:
        KeyPolicy().check(key)
    except WeakKey as error:
        raise CeremonyRefused(str(error)) from error


def _self_signed_root(
    trust_domain: str, key: PrivateKey, serial: int, now: datetime, name: x509.Name | None = None
) -> x509.Certificate:
    name = name or _name(trust_domain, "Fleetgate root CA")
    return (
        _builder(name, name, key.public_key(), serial, (now - _BACKDATE, now + ROOT_LIFE))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hash_for(key))
    )


def _name(trust_domain: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),  # RFC 5280 appendix A.1: at most 64.
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: CertificatePublicKeyTypes,
    serial: int,
    validity: tuple[datetime, datetime],
) -> x509.CertificateBuilder:
    not_before, not_after = validity
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(_CA_KEY_USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier(key_identifier(public_key)), critical=False)
    )
