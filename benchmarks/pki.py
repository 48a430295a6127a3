"""A throw-away fleet PKI for benchmarks: root and issuing CA, a broker, a backend service, and many devices.

Every device has its own key and certificate, as in a real fleet: a load generator that uses one certificate for all its
connections measures something else. Both peers use the same files, a chain of two as the product issues it.

Handles: ECDSA P-256 certificates of one day, in a folder that the caller removes.
Does not handle: revocation, renewal; `provisioning` does.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provisioning.pki.identity import Identity
from provisioning.pki.keys import generate_key, key_to_pem
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialFiles

TRUST_DOMAIN = "bench.internal"
GROUP = "bench"
BACKEND = "backend"
SERVER = Identity(TRUST_DOMAIN, Role.BROKER, "broker")
SERVER_NAMES = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))


@dataclass(frozen=True, slots=True)
class BenchPki:
    """The file locations: trust anchors, the server's and the backend's credentials, and a folder of devices' ones."""

    trust_anchors: Path
    server: CredentialFiles
    backend: CredentialFiles
    devices: Path
    crls: Path
    """Empty CRLs of both CAs."""
    probes: Path
    """A folder of devices that nothing else uses."""
    issuing: Authority

    def renew_server(self) -> None:
        """Give the server another key and certificate, in the same files."""
        self.issuing.issue(SERVER, self.server.certificate.with_suffix(""), SERVER_NAMES)


def create(folder: Path, devices: int, probes: int = 0) -> BenchPki:
    """Create everything in *folder*, which exists and is the caller's alone; devices are d00001, d00002 and so on.

    *probes* are devices too: p00001 and so on.
    """
    root, issuing = Authority.create_pair()
    anchors = folder / "ca-bundle.crt"
    anchors.write_bytes(root.pem + issuing.pem)
    device_folder = folder / "devices"
    device_folder.mkdir(mode=0o700)
    for number in range(1, devices + 1):
        identity = Identity(TRUST_DOMAIN, Role.DEVICE, f"d{number:05}", GROUP)
        issuing.issue(identity, device_folder / identity.name)
    probe_folder = folder / "probes"
    probe_folder.mkdir(mode=0o700)
    for number in range(1, probes + 1):
        identity = Identity(TRUST_DOMAIN, Role.DEVICE, f"p{number:05}", GROUP)
        issuing.issue(identity, probe_folder / identity.name)
    crls = folder / "crls.pem"
    crls.write_bytes(root.empty_crl() + issuing.empty_crl())
    return BenchPki(
        trust_anchors=anchors,
        server=issuing.issue(SERVER, folder / "server", SERVER_NAMES),
        backend=issuing.issue(Identity(TRUST_DOMAIN, Role.SERVICE, BACKEND), folder / BACKEND),
        devices=device_folder,
        crls=crls,
        probes=probe_folder,
        issuing=issuing,
    )


def write_credential(stem: Path, certificate_pem: bytes, key: ec.EllipticCurvePrivateKey) -> CredentialFiles:
    """Write *stem*.crt and *stem*.key (mode 0600) in the load generator's format."""
    files = CredentialFiles(stem.parent / f"{stem.name}.crt", stem.parent / f"{stem.name}.key")
    files.certificate.write_bytes(certificate_pem)
    files.key.touch(mode=0o600)
    # Not `write_private`: its fsync is right for a real key but slow for thousands that live for minutes.
    files.key.write_bytes(key_to_pem(key))
    return files


@dataclass(frozen=True, slots=True)
class Authority:
    """One CA of the pair."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create_pair(cls) -> tuple[Authority, Authority]:
        """Return a self-signed root CA and the issuing CA below it."""
        root_key, issuing_key = generate_key(), generate_key()
        root_name, issuing_name = _name("Benchmark root CA"), _name("Benchmark issuing CA")
        root = _ca(root_name, root_key, root_name, path_length=1).sign(root_key, hashes.SHA256())
        issuing = _ca(issuing_name, issuing_key, root_name, path_length=0)
        issuing = issuing.add_extension(_authority_key(root_key), critical=False)
        return cls(root, root_key), cls(issuing.sign(root_key, hashes.SHA256()), issuing_key)

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def empty_crl(self, number: int = 1) -> bytes:
        """Return an empty CRL, PEM."""
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - dt.timedelta(minutes=1))
            .next_update(now + dt.timedelta(days=1))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(_authority_key(self.key), critical=False)
        )
        return builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue(self, identity: Identity, stem: Path, names: tuple[x509.GeneralName, ...] = ()) -> CredentialFiles:
        """Write a credential for *identity*, including its chain."""
        key = generate_key()
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if identity.role is Role.BROKER:
            usages.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
        builder = (
            _builder(_name(identity.name), key, self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri), *names]), critical=False
            )
            .add_extension(_authority_key(self.key), critical=False)
        )
        certificate = builder.sign(self.key, hashes.SHA256())
        return write_credential(stem, certificate.public_bytes(serialization.Encoding.PEM) + self.pem, key)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _authority_key(key: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())


def _builder(subject: x509.Name, key: ec.EllipticCurvePrivateKey, issuer: x509.Name) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _ca(
    subject: x509.Name, key: ec.EllipticCurvePrivateKey, issuer: x509.Name, path_length: int
) -> x509.CertificateBuilder:
    return (
        _builder(subject, key, issuer)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
