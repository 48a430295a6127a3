"""The issuing CA: the only code that signs an end-entity certificate.

Theory
------
Two steps, so that nothing unchecked can be signed::

    Issuer.prepare(profile, request) -> PreparedIssuance      built, and linted under a dummy signature
    Issuer.issue(prepared) -> Certificate                     redeemed once, by the issuer that prepared it
    Issuer.sign(prepared) -> its DER                          the same

Only `prepare` makes what both accept. The linted fields themselves are signed, byte for byte
(`provisioning.ca.signing`). A draft that differs from a linted certificate only in serial number, dates, names and key
is not fully parsed again (`provisioning.ca.precedents`).

Rules
-----
1. A prepared issuance is redeemed at most once, and only by its own issuer.
2. The serial number comes from the caller, who has put it on disk before (`provisioning.store.serials`).
3. No I/O, no clock, no database. The key may be any subclass of the library's key classes, so a token's too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

from provisioning.ca import fields as parts
from provisioning.ca.fields import encoded, joined
from provisioning.ca.lint import Intent, Made, lint, lint_ocsp_signer
from provisioning.ca.name_policy import SubjectNames
from provisioning.ca.precedents import Precedents
from provisioning.ca.profile import DIGITAL_SIGNATURE, Profile
from provisioning.ca.server_names import IpAddress
from provisioning.ca.signing import signature_algorithm, signer, try_key, with_signature
from provisioning.pki.identity import Identity
from provisioning.pki.keys import PrivateKey, key_identifier, spki_of
from provisioning.quick_values import quickly_made

_OCSP_BACKDATE: Final = timedelta(minutes=1)
_OCSP_SIGNER_NAME: Final = parts.common_name("Fleetgate OCSP signer")
_OCSP_SIGNING: Final = encoded(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]))
_NO_CHECK: Final = encoded(x509.OCSPNoCheck())
_NO_CA: Final = encoded(x509.BasicConstraints(ca=False, path_length=None), critical=True)
_USAGE: Final = encoded(DIGITAL_SIGNATURE, critical=True)
_NO_SIGNATURE: Final = bytes(8)
_KEPT: Final = 64


class IssuanceRefused(Exception):
    """The certificate must not be signed: lint findings, or a prepared issuance misused. Not the requester's fault."""


@quickly_made
@dataclass(frozen=True, slots=True)
class IssuerUrls:
    """Where relying parties find an issuer's CRL, certificate and OCSP responder; None: not published.

    A root has no responder.
    """

    crl: str | None
    ca_certificate: str | None
    ocsp: str | None = None


@quickly_made
@dataclass(frozen=True, slots=True)
class IssuanceRequest:
    """Whom to certify, with which key and serial number, and the time now; *life* may be below the profile's."""

    identity: Identity
    public_key: CertificatePublicKeyTypes
    serial: int
    now: datetime
    dns_names: tuple[str, ...] = ()
    ip_addresses: tuple[IpAddress, ...] = ()
    life: timedelta | None = None
    crl_url: str | None = None
    """The CRL shard it belongs to; None: the issuer's single CRL."""
    attributes: tuple[x509.NameAttribute[str | bytes], ...] = ()
    """The subject's attributes before the Common Name."""
    spki: bytes = b""
    """The key's SubjectPublicKeyInfo, if the caller has it already."""

    @property
    def names(self) -> SubjectNames:
        """The names beside the identity."""
        return SubjectNames(self.dns_names, self.ip_addresses, self.attributes)


@dataclass(frozen=True, slots=True)
class OcspSignerRequest:
    """Which key may answer OCSP requests in the issuer's name, and for how long."""

    public_key: CertificatePublicKeyTypes
    serial: int
    now: datetime
    life: timedelta


class PreparedIssuance:
    """A linted certificate waiting for its signature. Made by `Issuer` only."""

    __slots__ = ("_fields", "_issuer", "_redeemed", "made")

    def __init__(self, issuer: Issuer, fields: bytes, made: Made) -> None:
        self._issuer = issuer
        self._fields = fields
        self._redeemed = False
        self.made: Final = made

    def redeem(self, issuer: Issuer) -> bytes:
        """Return the linted fields to the *issuer* that prepared them, once."""
        if issuer is not self._issuer:
            raise IssuanceRefused("another issuer prepared this certificate")
        if self._redeemed:
            raise IssuanceRefused("this prepared certificate was signed already")
        self._redeemed = True
        return self._fields


class Issuer:
    """One issuing CA: its certificate, its key, and where its CRL is found."""

    def __init__(self, certificate: x509.Certificate, key: PrivateKey, urls: IssuerUrls | None = None) -> None:
        """Raise ValueError if *key* is not the key of *certificate*."""
        if key.public_key() != certificate.public_key():
            raise ValueError("the private key does not belong to the issuing CA's certificate")
        self.certificate: Final = certificate
        self.key_id: Final = key_identifier(certificate.public_key())
        self.key_in_memory: Final = type(key).__module__.startswith("cryptography.")
        """Whether the key is the library's own, not in a hardware token, which may be slow to sign."""
        self.try_key: Final = functools.partial(try_key, key)
        """Make a trial signature with the key, over no certificate: raises the key's own error, or InvalidSignature."""
        self._signature = signer(key)
        self._name = certificate.subject.public_bytes()
        self._algorithm = signature_algorithm(key)
        self._authority = encoded(x509.AuthorityKeyIdentifier(self.key_id, None, None))
        self._urls = urls
        self._precedents = Precedents(certificate.not_valid_after_utc)

    def prepare(self, profile: Profile, request: IssuanceRequest) -> PreparedIssuance:
        """Build and lint a certificate; raise `IssuanceRefused` with every finding if there is one."""
        spki = request.spki or spki_of(request.public_key)
        not_before, not_after = profile.validity(request.now, self.certificate.not_valid_after_utc, request.life)
        if not_after <= request.now:  # notBefore is backdated, so that devices whose clocks are behind accept it.
            raise IssuanceRefused(f"the issuing CA expired on {self.certificate.not_valid_after_utc:%Y-%m-%d}")
        made = Made(request.serial, not_before, not_after, spki)
        fields = self._fields(profile, request, made)
        self._check(fields, Intent(profile, request.identity, self.certificate, request.names, made))
        return PreparedIssuance(self, fields, made)

    def prepare_ocsp_signer(self, request: OcspSignerRequest) -> PreparedIssuance:
        """Build and lint the certificate of a delegated OCSP signer (RFC 6960 §4.2.2.2); raise `IssuanceRefused`."""
        now = request.now.replace(microsecond=0)
        not_after = min(now + request.life, self.certificate.not_valid_after_utc)
        made = Made(request.serial, now - _OCSP_BACKDATE, not_after, spki_of(request.public_key))
        fields = self._joined(
            made,
            _OCSP_SIGNER_NAME,
            # The responder is not asked about itself; its short life takes the place of revocation.
            (_OCSP_SIGNING, _NO_CHECK),
        )
        findings = lint_ocsp_signer(self._draft(fields), self.certificate)
        if findings:
            raise IssuanceRefused(f"the OCSP signer's certificate fails its checks: {'; '.join(findings)}")
        return PreparedIssuance(self, fields, made)

    def issue(self, prepared: PreparedIssuance) -> x509.Certificate:
        """Sign what was prepared; raise `IssuanceRefused` if it was signed before or is another issuer's."""
        return x509.load_der_x509_certificate(self.sign(prepared))

    def sign(self, prepared: PreparedIssuance) -> bytes:
        """As `issue`, but return the certificate in DER."""
        fields = prepared.redeem(self)
        return with_signature(fields, self._algorithm, self._signature(fields))

    def _check(self, fields: bytes, intent: Intent) -> None:
        """Raise `IssuanceRefused` if *fields* are not the intended certificate, or have lint findings."""
        if self._precedents.cover(fields, intent):
            return
        findings = lint(self._draft(fields), intent)
        if findings:
            raise IssuanceRefused(f"the certificate for {intent.identity} fails its checks: {'; '.join(findings)}")
        self._precedents.remember(fields, intent.profile)

    def _fields(self, profile: Profile, request: IssuanceRequest, made: Made) -> bytes:
        return self._joined(
            made,
            _subject(request),
            (
                _purposes(profile.extended_key_usages),
                _alternative_name(request),
                *self._pointers(profile, request.crl_url),
            ),
        )

    def _draft(self, fields: bytes) -> x509.Certificate:
        """Return *fields* as a certificate under a dummy signature."""
        return x509.load_der_x509_certificate(with_signature(fields, self._algorithm, _NO_SIGNATURE))

    def _pointers(self, profile: Profile, shard_url: str | None) -> Sequence[bytes]:
        urls = self._urls
        if shard_url is not None:
            if urls is None:
                raise IssuanceRefused("a certificate cannot belong to a CRL shard without a public address")
            urls = replace(urls, crl=shard_url)
        if urls is None:
            return ()
        return _pointers_to(
            IssuerUrls(
                urls.crl if profile.crl_url else None,
                urls.ca_certificate if profile.issuer_url else None,
                urls.ocsp if profile.ocsp_url else None,
            )
        )

    def _joined(self, made: Made, subject: bytes, extensions: Sequence[bytes]) -> bytes:
        """Return the fields of an end-entity certificate; *extensions* follow those that all certificates share."""
        return joined(
            self._algorithm,
            self._name,
            serial=made.serial,
            not_before=made.not_before,
            not_after=made.not_after,
            subject=subject,
            spki=made.spki,
            extensions=(_NO_CA, _USAGE, parts.key_identifier(made.spki), self._authority, *extensions),
        )


def _subject(request: IssuanceRequest) -> bytes:
    name = request.identity.name
    if not request.attributes:
        return parts.common_name(name)
    return x509.Name([*request.attributes, x509.NameAttribute(NameOID.COMMON_NAME, name)]).public_bytes()


def _alternative_name(request: IssuanceRequest) -> bytes:
    uri = request.identity.uri
    if not (request.dns_names or request.ip_addresses):
        return parts.only_uri(uri)
    return encoded(
        x509.SubjectAlternativeName(
            [
                x509.UniformResourceIdentifier(uri),
                *(x509.DNSName(name) for name in request.dns_names),
                *(x509.IPAddress(address) for address in request.ip_addresses),
            ]
        )
    )


# The same in every certificate of a profile and shard, so they are encoded once.
@functools.lru_cache(_KEPT)
def _purposes(usages: tuple[x509.ObjectIdentifier, ...]) -> bytes:
    return encoded(x509.ExtendedKeyUsage(usages))


@functools.lru_cache(_KEPT)
def _pointers_to(urls: IssuerUrls) -> Sequence[bytes]:
    return [encoded(extension) for extension in url_extensions(urls)]


def url_extensions(urls: IssuerUrls | None) -> tuple[x509.ExtensionType, ...]:
    """Return the extensions that point to an issuer's CRL and certificate; none if no address is known."""
    if urls is None:
        return ()
    extensions: list[x509.ExtensionType] = []
    if urls.crl is not None:
        location = x509.UniformResourceIdentifier(urls.crl)
        extensions.append(
            x509.CRLDistributionPoints(
                [x509.DistributionPoint(full_name=[location], relative_name=None, reasons=None, crl_issuer=None)]
            )
        )
    access = (
        (AuthorityInformationAccessOID.OCSP, urls.ocsp),
        (AuthorityInformationAccessOID.CA_ISSUERS, urls.ca_certificate),
    )
    descriptions = [
        x509.AccessDescription(method, x509.UniformResourceIdentifier(url)) for method, url in access if url is not None
    ]
    if descriptions:
        extensions.append(x509.AuthorityInformationAccess(descriptions))
    return tuple(extensions)
