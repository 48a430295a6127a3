"""A CA controlled by the test: what the fleet's issuing CA signs, and what it never should.

Rules
-----
1. Everything in a certificate is as in the fleet's own, except what the call specifies.
2. The tester provides the CA's key: that of our own throw-away CA, or through ``--ca-key``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from device_sim.credentials.certification import common_name, key_usage, signature_hash
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.identity import Identity
from provisioning.pki.issued_by import as_compared
from provisioning.pki.keys import KeyFileError, PrivateKey, generate_key, key_to_pem, load_key
from provisioning.pki.pem import pem_of
from provisioning.pki.role import Role
from provisioning.pki.tls import CredentialPem
from provisioning.program.given_file import PEM_BYTES, contents_of, unread

CLIENT_AUTH = (ExtendedKeyUsageOID.CLIENT_AUTH,)
SERVER_AUTH = (ExtendedKeyUsageOID.SERVER_AUTH,)
_LIFE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Paper:
    """A certificate with its key, and what is presented with it."""

    certificate: x509.Certificate
    key: PrivateKey
    chain: tuple[x509.Certificate, ...] = ()

    @property
    def name(self) -> str:
        """The Common Name: the name that the certificate claims, whatever else is wrong with it."""
        (common,) = self.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(common.value)

    @property
    def pem(self) -> CredentialPem:
        """What a TLS context loads."""
        return self.shown_as(self.certificate.public_bytes(Encoding.PEM))

    def shown_as(self, certificate_pem: bytes, key_pem: bytes | None = None) -> CredentialPem:
        """Return the credential with another certificate, or another key, in place of its own."""
        chain = pem_of(*self.chain)
        return CredentialPem(certificate_pem + chain + (key_pem or key_to_pem(self.key)))

    def presented_with(self, *chain: x509.Certificate) -> Paper:
        """Return the same, presented with *chain*."""
        return Paper(self.certificate, self.key, chain)


class Issuer:
    """Signs whatever it is told to."""

    def __init__(self, certificate: x509.Certificate, key: PrivateKey, *, dns_of_name: bool = False) -> None:
        self.certificate = certificate
        self.key = key
        self._dns_of_name = dns_of_name
        """Whether each certificate includes its name as a dNSName too: for brokers that read nothing else."""

    @classmethod
    def load(cls, certificate: Path, key: Path, passphrase: bytes | None = None) -> Issuer:
        """Return the CA in two PEM files; raise `KeyFileError` naming the file and the remedy."""
        try:
            loaded = x509.load_pem_x509_certificate(contents_of(certificate, PEM_BYTES))
        except OSError as error:
            raise KeyFileError(unread(certificate, error)) from error
        except UNREADABLE as error:
            raise KeyFileError(f"{certificate} holds no PEM certificate") from error
        issuer = cls(loaded, load_key(key, passphrase))
        if issuer.key.public_key() != loaded.public_key():
            raise KeyFileError(f"{certificate} and {key} do not belong together: give the CA's own pair")
        return issuer

    @classmethod
    def founded(
        cls, name: x509.Name, *, path_length: int | None = 0, dns_of_name: bool = False, ends: timedelta = _LIFE
    ) -> Issuer:
        """Return a new self-signed CA called *name*, valid until *ends* from now."""
        key = generate_key()
        paper = cls(_placeholder(name, key), key).issue(
            None, key=key, subject=name, ca=True, path_length=path_length, usages=None, ends=ends
        )
        return cls(paper.certificate, key, dns_of_name=dns_of_name)

    def vouches_for(
        self,
        certificate: x509.Certificate,
        *,
        begins: timedelta = timedelta(minutes=-1),
        ends: timedelta = _LIFE,
        revoked: bool = False,
        responder: Paper | None = None,
    ) -> bytes:
        """Return an OCSP response (RFC 6960) in DER, valid from *begins* to *ends* from now, about *certificate*.

        It says that it is not *revoked*. It is signed by this CA, or by another *responder*, whose certificate goes
        with it.
        """
        now = datetime.now(UTC)
        builder = ocsp.OCSPResponseBuilder().add_response(
            certificate,
            self.certificate,
            hashes.SHA1(),  # noqa: S303 - it names, and signs nothing: what clients ask by
            ocsp.OCSPCertStatus.REVOKED if revoked else ocsp.OCSPCertStatus.GOOD,
            now + begins,
            now + ends,
            now + begins if revoked else None,
            x509.ReasonFlags.key_compromise if revoked else None,
        )
        signer = responder or Paper(self.certificate, self.key)
        # By name, it could be this CA itself.
        builder = builder.responder_id(ocsp.OCSPResponderEncoding.NAME, signer.certificate)
        if responder is not None:
            builder = builder.certificates([responder.certificate])
        return builder.sign(signer.key, signature_hash(signer.key)).public_bytes(Encoding.DER)

    def issue(
        self,
        identity: Identity | None,
        *,
        key: PrivateKey | None = None,
        public_key: CertificatePublicKeyTypes | None = None,
        subject: x509.Name | None = None,
        issuer_name: x509.Name | None = None,
        begins: timedelta = timedelta(minutes=-1),
        ends: timedelta = _LIFE,
        usages: Sequence[ObjectIdentifier] | None = CLIENT_AUTH,
        ca: bool = False,
        path_length: int | None = None,
        authority_key: bool = True,
        serial: int | None = None,
        now: datetime | None = None,
        dns_names: Sequence[str] = (),
        extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
    ) -> Paper:
        """Return a certificate for *identity*, valid from *begins* to *ends* from *now*, or from the present time.

        With *public_key* it is for that key, as in a certificate request; the key in the result is then meaningless.
        """
        key = key or generate_key()
        now = now or datetime.now(UTC)
        names: list[x509.GeneralName] = [] if identity is None else [x509.UniformResourceIdentifier(identity.uri)]
        if self._dns_of_name and identity is not None:
            dns_names = [identity.name, *dns_names]
        names += [x509.DNSName(name) for name in dns_names]
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject or _common_name(identity))
            .issuer_name(issuer_name or self.certificate.subject)
            .public_key(public_key or key.public_key())
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length if ca else None), critical=True)
            .add_extension(key_usage(signs_certificates=ca), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key or key.public_key()), critical=False)
        )
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if authority_key:
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False
            )
        for extension, critical in extra:
            builder = builder.add_extension(extension, critical=critical)
        return Paper(builder.sign(self.key, signature_hash(self.key)), key)

    def device(self, name: str, group: str, trust_domain: str) -> Paper:
        """Return a good device's certificate."""
        return self.issue(Identity(trust_domain, Role.DEVICE, name, group))

    def has_signed(self, crl: x509.CertificateRevocationList) -> bool:
        """Whether *crl* is one of this CA."""
        is_named = as_compared(crl.issuer) == as_compared(self.certificate.subject)
        return is_named and crl.is_signature_valid(self.key.public_key())

    def crl(
        self,
        serials: Sequence[int],
        after: Sequence[x509.CertificateRevocationList] = (),
        begins: datetime | None = None,
    ) -> bytes:
        """Return a CRL (PEM) with *serials*, all for keyCompromise, and all that this CA's own, *after*, revoke.

        It is newer than they are by its date alone, *begins*: the next one of the CA has a higher number.
        """
        now = datetime.now(UTC)
        revoked = {entry.serial_number: entry for crl in after for entry in crl}
        revoked |= {serial: _compromised(serial, now - timedelta(minutes=1)) for serial in serials}
        # All entries together: the builder copies those before with each one that is added.
        builder = (
            x509.CertificateRevocationListBuilder(revoked_certificates=[*revoked.values()])
            .issuer_name(self.certificate.subject)
            .last_update(begins or now - timedelta(minutes=1))
            .next_update(now + _LIFE)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        numbers = [number for crl in after if (number := _crl_number(crl)) is not None]
        if numbers or not after:  # A CA that numbers none goes on to.
            number = max(numbers, default=int(now.timestamp() * 1000))
            builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        return builder.sign(self.key, signature_hash(self.key)).public_bytes(Encoding.PEM)

    @property
    def pem(self) -> bytes:
        """Its certificate."""
        return self.certificate.public_bytes(Encoding.PEM)


def _common_name(identity: Identity | None) -> x509.Name:
    if identity is None:
        raise ValueError("a certificate without an identity needs a subject")
    return common_name(identity.name)


def _compromised(serial: int, since: datetime) -> x509.RevokedCertificate:
    builder = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since)
    return builder.add_extension(x509.CRLReason(x509.ReasonFlags.key_compromise), critical=False).build()


def _crl_number(crl: x509.CertificateRevocationList) -> int | None:
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return None


def _placeholder(name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    # A CA signs itself with a certificate that does not exist yet: only the subject of this one is used.
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + _LIFE)
        .sign(key, hashes.SHA256())
    )
