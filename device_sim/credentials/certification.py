"""Certificates that the simulator signs itself: for brokers that do not use our provisioning service.

Theory
------
A CA's owner can have a fleet for any broker: `CertificateAuthority` signs with the CA's key what the provisioning
service would have issued. `forgery` uses the same builder without owning a CA, which is its point.

Rules
-----
1. One builder (`end_entity`): a forged certificate differs from a genuine one only in its signature.
2. The CA's key is read once and never written anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from device_sim.credentials.credential import HeldCredential
from provisioning.pki.extension import UNREADABLE, extension
from provisioning.pki.identity import Identity
from provisioning.pki.keys import PrivateKey, generate_key, key_to_pem, load_key
from provisioning.pki.tls import CredentialPem
from provisioning.program.given_file import PEM_BYTES, contents_of, unread

LIFE = timedelta(days=30)
FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""The notAfter of a certificate without expiry (802.1AR §8.7)."""


class UnusableAuthority(Exception):
    """The CA's certificate cannot sign devices; the text names the file and the remedy."""


def common_name(name: str) -> x509.Name:
    """Return a subject that consists of a Common Name only."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Return the key usage of a CA, or of an end entity."""
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def signature_hash(key: PrivateKey) -> hashes.SHA256 | None:
    """Return the hash to sign with for *key*; None for Ed25519, which has its own."""
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def end_entity(
    identity: Identity,
    key: ec.EllipticCurvePrivateKey,
    *,
    issuer: x509.Name,
    issuer_key: PrivateKey,
    life: timedelta = LIFE,
) -> x509.Certificate:
    """Return a client certificate for *identity* and *key*, signed by *issuer_key*, with *issuer* as issuer."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(common_name(identity.name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + life)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        .sign(issuer_key, signature_hash(issuer_key))
    )


@dataclass(frozen=True, slots=True)
class CertificateAuthority:
    """A CA that the user owns. Created by `load`."""

    certificate: x509.Certificate
    key: PrivateKey

    @classmethod
    def load(cls, certificate: Path, key: Path) -> CertificateAuthority:
        """Return the CA in two PEM files. Raises `UnusableAuthority` or `provisioning.pki.keys.KeyFileError`."""
        try:
            loaded = x509.load_pem_x509_certificate(contents_of(certificate, PEM_BYTES))
        except OSError as error:
            raise UnusableAuthority(unread(certificate, error)) from error
        except UNREADABLE as error:
            raise UnusableAuthority(f"{certificate} holds no PEM certificate") from error
        private = load_key(key)
        if loaded.public_key() != private.public_key():
            raise UnusableAuthority(f"{key} is not the key of {certificate}: name the pair that belongs together")
        constraints = extension(loaded, x509.BasicConstraints)
        if constraints is None or not constraints.ca:
            raise UnusableAuthority(f"{certificate} is not a CA certificate (basicConstraints CA): name one that is")
        return cls(loaded, private)

    @property
    def pem(self) -> str:
        """The CA's certificate, the trust anchor of its devices."""
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def issue(self, identity: Identity) -> HeldCredential:
        """Return a new key and its certificate, which never outlives the CA's own."""
        key = generate_key()
        life = min(LIFE, self.certificate.not_valid_after_utc - datetime.now(UTC))
        issued = end_entity(identity, key, issuer=self.certificate.subject, issuer_key=self.key, life=life)
        # An issuing CA's certificate is sent along, so that a broker that trusts only the root can build the path.
        own_root = self.certificate.subject == self.certificate.issuer
        return HeldCredential.of(issued, key, *(() if own_root else (self.certificate,)))


def idevid(manufacturer: CertificateAuthority, number: str) -> CredentialPem:
    """Return the key and certificate that *manufacturer* puts into the device with the serial *number* (802.1AR §8)."""
    key, issuer = generate_key(), manufacturer.certificate
    subject = x509.Name([x509.NameAttribute(NameOID.SERIAL_NUMBER, number)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(minutes=1))
        .not_valid_after(FOREVER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(manufacturer.key.public_key()), critical=False
        )
        .sign(manufacturer.key, signature_hash(manufacturer.key))
    )
    return CredentialPem(certificate.public_bytes(Encoding.PEM) + key_to_pem(key))
