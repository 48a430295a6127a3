"""A manufacturer of devices: its CA, and the certificates (IDevIDs) that it puts into them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from provisioning.ca.der import BIT_STRING, SEQUENCE, children, element
from provisioning.pki.keys import PrivateKey, generate_key, key_to_pem

_SERIAL_NUMBER = bytes.fromhex("0603550405")
VERSION_3 = bytes.fromhex("a003020102")
FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""IEEE 802.1AR §8.7: an IDevID does not end."""


class Manufacturer:
    """A CA, and what it issues. Two of the same *name* have different keys."""

    def __init__(self, name: str = "Acme devices", begin: datetime | None = None) -> None:
        self._begin = begin or datetime.now(UTC) - timedelta(days=1)
        self.key = generate_key()
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self.ca(self.key.public_key())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def idevid(
        self,
        *serial_numbers: str,
        end: datetime = FOREVER,
        key: PrivateKey | None = None,
        usage: x509.KeyUsage | None = None,
    ) -> tuple[x509.Certificate, bytes]:
        """Return a device certificate, without Authority Key Identifier as some are, and it with its key as PEM."""
        key = key or generate_key()
        attributes = [x509.NameAttribute(NameOID.SERIAL_NUMBER, number) for number in serial_numbers]
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme"), *attributes])
        builder = self._builder(subject, key.public_key(), end)
        if usage is not None:
            builder = builder.add_extension(usage, critical=True)
        certificate = builder.sign(self.key, hashes.SHA256())
        return certificate, key_to_pem(key) + certificate.public_bytes(Encoding.PEM)

    def ca(self, public_key: object, usage: x509.KeyUsage | None = None, *, ca: bool = True) -> x509.Certificate:
        """Return a certificate that makes the holder of *public_key* a CA of the same name, or says that he is none."""
        constraints = x509.BasicConstraints(ca=ca, path_length=0 if ca else None)
        builder = self._builder(self.name, public_key).add_extension(constraints, critical=True)
        if usage is not None:
            builder = builder.add_extension(usage, critical=True)
        return builder.sign(self.key, hashes.SHA256())

    def unreadable(self) -> x509.Certificate:
        """Return a device certificate that OpenSSL reads and `cryptography` does not: its serialNumber is no text."""
        text, bits = _SERIAL_NUMBER + b"\x13\x04SN17", _SERIAL_NUMBER + b"\x03\x04\x00N17"
        return x509.load_der_x509_certificate(self.changed(self.idevid("SN17")[0], text, bits))

    def changed(self, certificate: x509.Certificate, old: bytes, new: bytes, places: int = -1) -> bytes:
        """Return *certificate* in DER with *new* in the first *places* of *old*, signed again."""
        tbs, algorithm, _ = children(certificate.public_bytes(Encoding.DER))
        if old not in tbs:
            raise AssertionError("there is nothing to change")
        tbs = tbs.replace(old, new, places)
        signature = self.key.sign(tbs, ec.ECDSA(hashes.SHA256()))
        return element(SEQUENCE, tbs + algorithm + element(BIT_STRING, b"\x00" + signature))

    def _builder(self, subject: x509.Name, public_key: object, end: datetime = FOREVER) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public_key)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._begin)
            .not_valid_after(end)
        )
