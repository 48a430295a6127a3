"""A manufacturer of devices: its CA, and the certificates (IDevIDs) it installs in them."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from provisioning.ca.der import BIT_STRING, SEQUENCE, children, element
from provisioning.pki.keys import PrivateKey, generate_key, key_to_pem
from tests.support.pki import Held

_SERIAL_NUMBER = bytes.fromhex("0603550405")
_COMMON_NAME = bytes.fromhex("0603550403")
_OF_A_CA = x509.BasicConstraints(ca=True, path_length=0)
FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
"""IEEE 802.1AR §8.7: an IDevID does not expire."""


class Manufacturer:
    """A CA, and what it issues. Two with the same *name* have different keys."""

    def __init__(
        self,
        name: str = "Acme devices",
        begin: datetime | None = None,
        *,
        end: datetime = FOREVER,
        key: PrivateKey | None = None,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
        above: Manufacturer | None = None,
        strings: _ASN1Type | None = None,
        constraints: x509.BasicConstraints = _OF_A_CA,
    ) -> None:
        """*extensions*, each with its criticality, are in the CA's own certificate too.

        *above* is its issuer, or itself if None. *strings*: the string types in its name.
        """
        self._begin = begin or datetime.now(UTC) - timedelta(days=1)
        self.key = key or generate_key()
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, strings)])
        builder = self._builder(self.name, self.key.public_key(), end)
        for extension, critical in ((constraints, True), *extensions):
            builder = builder.add_extension(extension, critical=critical)
        signer = self if above is None else above
        self.certificate = builder.issuer_name(signer.name).sign(signer.key, hashes.SHA256())

    @property
    def held(self) -> Held:
        """The CA, as the signer of lists."""
        assert isinstance(self.key, ec.EllipticCurvePrivateKey)
        return Held(self.certificate, self.key)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def idevid(
        self,
        *serial_numbers: str,
        end: datetime = FOREVER,
        key: PrivateKey | None = None,
        usage: x509.KeyUsage | None = None,
        extensions: Sequence[tuple[x509.ExtensionType, bool]] = (),
        issuer: x509.Name | None = None,
    ) -> tuple[x509.Certificate, bytes]:
        """Return a device certificate, without Authority Key Identifier like some, and the same with its key as PEM.

        *extensions*, each with its criticality, are in it too. *issuer*: the CA's name as given in it.
        """
        key = key or generate_key()
        attributes = [x509.NameAttribute(NameOID.SERIAL_NUMBER, number) for number in serial_numbers]
        subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme"), *attributes])
        builder = self._builder(subject, key.public_key(), end).issuer_name(issuer or self.name)
        for extension, critical in (*([] if usage is None else [(usage, True)]), *extensions):
            builder = builder.add_extension(extension, critical=critical)
        certificate = builder.sign(self.key, hashes.SHA256())
        return certificate, key_to_pem(key) + certificate.public_bytes(Encoding.PEM)

    def unreadable(self, *, issuer: bool = False) -> x509.Certificate:
        """Return a device certificate that OpenSSL can read and `cryptography` cannot: a name in it is not text.

        The name is its serialNumber, or that of its *issuer*.
        """
        text, bits = _SERIAL_NUMBER + b"\x13\x04SN17", _SERIAL_NUMBER + b"\x03\x04\x00N17"
        if issuer:
            text, bits = _COMMON_NAME + b"\x0c", _COMMON_NAME + b"\x03"
        return x509.load_der_x509_certificate(self._changed(self.idevid("SN17")[0], text, bits))

    def unreadable_ca(self) -> str:
        """Return its CA, with an issuer name that is not text: OpenSSL cannot read it, `cryptography` can."""
        common_name = _COMMON_NAME + b"\x0c\x0c"
        return ssl.DER_cert_to_PEM_cert(self._changed(self.certificate, common_name + b"A", common_name + b"\xff"))

    def _changed(self, certificate: x509.Certificate, old: bytes, new: bytes) -> bytes:
        """Return *certificate* with the first *old* replaced by *new*, signed again."""
        tbs, algorithm, _ = children(certificate.public_bytes(Encoding.DER))
        tbs = tbs.replace(old, new, 1)
        signature = self.key.sign(tbs, ec.ECDSA(hashes.SHA256()))  # type: ignore[call-arg,arg-type]
        return element(SEQUENCE, tbs + algorithm + element(BIT_STRING, b"\x00" + signature))

    def _builder(self, subject: x509.Name, public_key: object, end: datetime = FOREVER) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .public_key(public_key)  # type: ignore[arg-type]
            .serial_number(x509.random_serial_number())
            .not_valid_before(self._begin)
            .not_valid_after(end)
        )
