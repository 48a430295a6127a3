"""A throw-away PKI: a root, an issuing CA, and certificates good and bad, in memory and on disk.

    pki = Pki()
    meter = pki.device("meter-1")                       # a Held: certificate, key, chain
    late = pki.device("meter-2", not_after=pki.now - timedelta(seconds=1))
    files = meter.write(tmp_path)                       # CredentialFiles, for mosquitto_pub and openssl

A bad certificate is genuine in everything except what its arguments specify.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provisioning.pki.identity import Identity
from provisioning.pki.keys import generate_key, key_to_pem
from provisioning.pki.revocation import Revocation, certificate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialFiles, CredentialPem

DOMAIN = "fleet.internal"
CLIENT = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVER = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
_LOOPBACK = ip_address("127.0.0.1")
_SIGNS_CERTIFICATES = x509.KeyUsage(
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
NO_EXTENSIONS: tuple[x509.ExtensionType, ...] = ()


@dataclass(frozen=True)
class Held:
    """A certificate with its key, and the certificates between it and the anchor."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    @cached_property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> bytes:
        return key_to_pem(self.key) + pem_of(self.certificate, *self.chain)

    @property
    def credential(self) -> CredentialPem:
        return CredentialPem(self.pem)

    @property
    def revocation(self) -> Revocation:
        """A revocation of this certificate."""
        issuer_key_id, serial = certificate_key(self.certificate)
        return Revocation(issuer_key_id, serial, RevocationReason.KEY_COMPROMISE, datetime.now(UTC))

    def write(self, directory: Path, stem: str | None = None) -> CredentialFiles:
        """Write certificate with chain, and key, as two PEM files."""
        stem = stem or str(self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        files = CredentialFiles(directory / f"{stem}.crt", directory / f"{stem}.key")
        files.certificate.write_bytes(pem_of(self.certificate, *self.chain))
        files.key.write_bytes(key_to_pem(self.key))
        files.key.chmod(0o600)
        return files


@dataclass
class Pki:
    """One fleet's certification authorities. *now* is the base of all validity times."""

    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    root: Held = field(init=False)
    issuing: Held = field(init=False)

    def __post_init__(self) -> None:
        self.root = self._ca("Test Root CA", None, 1)
        self.issuing = self._ca("Test Issuing CA", self.root, 0)

    @property
    def anchors(self) -> str:
        """What relying parties trust, as PEM text."""
        return pem_of(self.root.certificate, self.issuing.certificate).decode()

    def authority(self, common_name: str, issuer: Held | None = None, **different: object) -> Held:
        """Return another CA: below *issuer*, or a root of its own.

        *different*: a *key*, *not_before*, *not_after*, *extensions*.
        """
        return self._ca(common_name, issuer, 0 if issuer else 1, **different)  # type: ignore[arg-type]

    def beside_unreadable(self, held: Held) -> Held:
        """Return *held*, who also sends a certificate that has its issuer's name, and says nothing readable."""
        unreadable = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"\xff")
        junk = self.authority("Test Issuing CA", self.root, extensions=[unreadable])
        return replace(held, chain=(junk.certificate, *held.chain))

    def write_anchors(self, directory: Path) -> Path:
        path = directory / "anchors.pem"
        path.write_text(self.anchors)
        return path

    def device(self, name: str, group: str = "meters", **different: object) -> Held:
        return self.certify(Identity(DOMAIN, Role.DEVICE, name, group), **different)  # type: ignore[arg-type]

    def service(self, name: str, **different: object) -> Held:
        return self.certify(Identity(DOMAIN, Role.SERVICE, name), **different)  # type: ignore[arg-type]

    def broker(self, name: str = "broker-1", **different: object) -> Held:
        names = [x509.DNSName("localhost"), x509.IPAddress(_LOOPBACK)]
        return self.certify(
            Identity(DOMAIN, Role.BROKER, name),
            purposes=SERVER,
            names=names,
            **different,  # type: ignore[arg-type]
        )

    def certify(
        self,
        identity: Identity,
        *,
        issuer: Held | None = None,
        issuer_name: x509.Name | None = None,
        common_name: str | None = None,
        uris: Sequence[str] | None = None,
        names: Sequence[x509.GeneralName] = (),
        purposes: Sequence[x509.ObjectIdentifier] | None = CLIENT,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        is_ca: bool = False,
        extensions: Sequence[x509.ExtensionType] = NO_EXTENSIONS,
        authority_key_id: bytes | None = None,
    ) -> Held:
        """Return a certificate for *identity*, with differences as given by arguments.

        *authority_key_id* is what it states as its issuer's key, which may be anything.
        """
        issuer = issuer or self.issuing
        key = generate_key()
        wanted: list[x509.GeneralName] = [
            x509.UniformResourceIdentifier(uri) for uri in ([identity.uri] if uris is None else uris)
        ]
        builder = (
            self._builder(
                _name(common_name or identity.name),
                issuer_name or issuer.certificate.subject,
                key,
                issuer,
                authority_key_id,
            )
            .not_valid_before(not_before or self.now - timedelta(hours=1))
            .not_valid_after(not_after or self.now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if wanted or names:
            builder = builder.add_extension(x509.SubjectAlternativeName([*wanted, *names]), critical=False)
        if purposes is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        chain = () if issuer is self.root else (issuer.certificate, *issuer.chain)
        return Held(builder.sign(issuer.key, hashes.SHA256()), key, chain)

    def self_signed(self, identity: Identity) -> Held:
        """Return a certificate signed only by its own key."""
        key = generate_key()
        name = _name(identity.name)
        certificate = (
            self._builder(name, name, key, None)
            .not_valid_before(self.now - timedelta(hours=1))
            .not_valid_after(self.now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)]), critical=False)
            .sign(key, hashes.SHA256())
        )
        return Held(certificate, key)

    def _ca(
        self,
        common_name: str,
        issuer: Held | None,
        path_length: int,
        *,
        key: ec.EllipticCurvePrivateKey | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        extensions: Sequence[x509.ExtensionType] = NO_EXTENSIONS,
    ) -> Held:
        key = key or generate_key()
        name = _name(common_name)
        builder = (
            self._builder(name, issuer.certificate.subject if issuer else name, key, issuer)
            .not_valid_before(not_before or self.now - timedelta(days=2))
            .not_valid_after(not_after or self.now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .add_extension(_SIGNS_CERTIFICATES, critical=True)  # RFC 5280 §4.2.1.9; OpenSSL's strict mode requires it.
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return Held(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)

    def _builder(
        self,
        subject: x509.Name,
        issuer_name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        issuer: Held | None,
        authority_key_id: bytes | None = None,
    ) -> x509.CertificateBuilder:
        named = x509.AuthorityKeyIdentifier.from_issuer_public_key((issuer.key if issuer else key).public_key())
        if authority_key_id is not None:
            named = x509.AuthorityKeyIdentifier(authority_key_id, None, None)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .add_extension(named, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )


@cache
def shared_pki() -> Pki:
    """Return the PKI that all tests of a process may use."""
    return Pki()


@cache
def shared_device(name: str, group: str = "meters") -> Held:
    """Return a device's certificate from `shared_pki`, made once."""
    return shared_pki().device(name, group)


@cache
def shared_service(name: str) -> Held:
    """Return a service's certificate from `shared_pki`, made once."""
    return shared_pki().service(name)


def pem_of(*certificates: x509.Certificate) -> bytes:
    """Return the certificates as PEM, one after the other."""
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
