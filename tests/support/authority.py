"""A certificate authority in one object, for tests that need certificates but no provisioning service."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from device_sim.credentials.credential import HeldCredential
from provisioning.pki.identity import Identity
from provisioning.pki.keys import generate_key
from provisioning.pki.role import Role

ONE_DAY = timedelta(days=1)


class Authority:
    """A self-signed CA that certifies any identity; its certificate is the trust anchor."""

    def __init__(self) -> None:
        self._key = generate_key()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
        self._certificate = (
            self._builder(self._name, self._key, ONE_DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    @property
    def pem(self) -> str:
        return self._certificate.public_bytes(Encoding.PEM).decode()

    def issue(
        self, name: str, *, role: Role = Role.DEVICE, group: str | None = "meters", life: timedelta = ONE_DAY
    ) -> HeldCredential:
        """Return a credential; a negative *life* makes it expired. A broker's is for ``localhost``."""
        key = generate_key()
        identity = Identity("fleet.internal", role, name, group)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
        if role is Role.BROKER:
            names.append(x509.DNSName("localhost"))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            self._builder(subject, key, life)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return HeldCredential.of(certificate, key)

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, life: timedelta) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * ONE_DAY)
            .not_valid_after(now + life)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
