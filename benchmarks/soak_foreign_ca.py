"""Foreign CAs in a soak: a plant's, in a trust bundle of the broker, and a maker's, whose devices may enrol."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from soak_fleet import Held

from provisioning.pki.keys import generate_key, key_to_pem

_BACK = timedelta(minutes=5)


class ForeignCa:
    """A CA with a *name*, whose certificate and whose lists live for minutes."""

    def __init__(self, name: str, life: timedelta) -> None:
        self._key = generate_key()
        self._life = life
        self._number = 0
        self.revoked: list[int] = []
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = (
            self._builder(subject, subject, self._key.public_key(), life)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def issue(self, *names: x509.NameAttribute[str], life: timedelta | None = None) -> Held:
        """Return a client's certificate with *names* in its subject."""
        key = generate_key()
        subject = x509.Name(list(names))
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = (
            self._builder(subject, self.certificate.subject, key.public_key(), life or self._life)
            .add_extension(usage, critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Held(certificate, key_to_pem(key))

    def list(self, life: timedelta) -> bytes:
        """Return its next CRL, in PEM, with all that is in `revoked`."""
        self._number += 1
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - timedelta(seconds=1))
            .next_update(now + life)
            .add_extension(x509.CRLNumber(self._number), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        for serial in self.revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    @staticmethod
    def _builder(subject: x509.Name, issuer: x509.Name, public_key: object, life: timedelta) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(public_key)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACK)
            .not_valid_after(now + life)
        )


def named(name: str) -> x509.NameAttribute[str]:
    """Return *name* as a Common Name."""
    return x509.NameAttribute(NameOID.COMMON_NAME, name)


def numbered(number: str) -> x509.NameAttribute[str]:
    """Return *number* as the serialNumber of an IDevID."""
    return x509.NameAttribute(NameOID.SERIAL_NUMBER, number)


def put(place: Path, content: bytes | Iterable[bytes]) -> None:
    """Write a file so that who reads it sees all of it or what was there before."""
    draft = place.with_name(f".{place.name}.new")
    draft.write_bytes(content if isinstance(content, bytes) else b"".join(content))
    draft.replace(place)
