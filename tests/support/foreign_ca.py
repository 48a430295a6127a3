"""A CA that knows nothing of our identities, and certificates as such CAs and their tools make them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provisioning.pki.keys import PrivateKey, key_to_pem

ONE_DAY = timedelta(days=1)


@dataclass(frozen=True)
class ForeignCertificate:
    """A certificate and its key, which need no file."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return key_to_pem(self.key)

    def write(self, directory: Path, stem: str) -> tuple[Path, Path]:
        """Write ``<stem>.crt`` and ``<stem>.key``."""
        directory.mkdir(exist_ok=True, parents=True)
        certificate, key = directory / f"{stem}.crt", directory / f"{stem}.key"
        certificate.write_bytes(self.pem)
        key.write_bytes(self.key_pem)
        return certificate, key


class ForeignCa:
    """A root, or what *above* has certified. Not *says_so*: nothing in its certificate says that it is a CA's."""

    def __init__(self, name: str = "Plant CA", above: ForeignCa | None = None, *, says_so: bool = True) -> None:
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        issuer, signer = (self._subject, self._key) if above is None else (above._subject, above._key)
        builder = _begun(self._subject, issuer, self._key, datetime.now(UTC) + 30 * ONE_DAY)
        if says_so:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = builder.sign(signer, SHA256())

    @property
    def own(self) -> ForeignCertificate:
        return ForeignCertificate(self.certificate, self._key)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def issue(
        self,
        name: str | None,
        *,
        key: PrivateKey | None = None,
        until: datetime | None = None,
        since: datetime | None = None,
        server: bool = False,
        alternative: x509.GeneralName | None = None,
    ) -> ForeignCertificate:
        """Return a certificate with *name* as Common Name, None: without; *server*: for servers only."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        attributes = [] if name is None else [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        builder = _begun(
            x509.Name(attributes), self._subject, key, until or datetime.now(UTC) + ONE_DAY, since
        ).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        if alternative is not None:
            builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        return ForeignCertificate(builder.sign(self._key, SHA256()), key)


def _begun(
    subject: x509.Name, issuer: x509.Name, key: PrivateKey, until: datetime, since: datetime | None = None
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(since or datetime.now(UTC) - 30 * ONE_DAY)
        .not_valid_after(until)
    )
