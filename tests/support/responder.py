"""An OCSP responder of a throw-away CA: answers as instructed, genuine except as requested."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from provisioning.pki.identity import Identity
from provisioning.pki.ocsp import ask
from provisioning.pki.role import Role
from tests.support.pki import DOMAIN, Held, Pki


def delegate(pki: Pki, issuer: Held | None = None, **different: Any) -> Held:
    """Return a delegate that the issuing CA allows to answer for it."""
    identity = Identity(DOMAIN, Role.SERVICE, "ocsp")
    wanted = {"purposes": [ExtendedKeyUsageOID.OCSP_SIGNING]} | different
    return pki.certify(identity, issuer=issuer or pki.issuing, **wanted)


@dataclass
class Responder:
    """Answers for *issuer*, signed by *signer*; certificates in *revoked* are revoked, with the reason."""

    issuer: Held
    signer: Held
    certificates: list[Held]
    """The certificates that it knows."""
    revoked: dict[int, x509.ReasonFlags | None] = field(default_factory=dict)
    unknown: bool = False
    nonce: bool = True
    life: timedelta | None = timedelta(hours=1)
    """How long an answer says it is valid; None: not stated."""
    age: timedelta = timedelta(minutes=1)
    made: datetime | None = None
    """What each answer says of when it was made; None: so long ago."""
    named_by: ocsp.OCSPResponderEncoding = ocsp.OCSPResponderEncoding.HASH
    beside: tuple[Held, ...] = ()
    """Whose certificates come in front of the signer's."""
    silent: bool = False
    delay: float = 0.0
    """Seconds before it answers."""
    forged: bool = False
    """Whether the answer was altered in transit."""
    another: bool = False
    """Whether it answers about a different certificate than requested."""

    def __call__(self, body: bytes) -> bytes | None:
        time.sleep(self.delay)
        if self.silent:
            return None
        request = ocsp.load_der_ocsp_request(body)
        (about,) = [each for each in self.certificates if each.certificate.serial_number == request.serial_number]
        if self.another:
            about = next(each for each in self.certificates if each is not about)
        made = self.made or datetime.now(UTC) - self.age
        is_revoked = about.certificate.serial_number in self.revoked
        reason = self.revoked.get(about.certificate.serial_number)
        status = ocsp.OCSPCertStatus.REVOKED if is_revoked else ocsp.OCSPCertStatus.GOOD
        if self.unknown:
            status = ocsp.OCSPCertStatus.UNKNOWN
        builder = (
            ocsp.OCSPResponseBuilder()
            .add_response(
                about.certificate,
                self.issuer.certificate,
                hashes.SHA1(),  # noqa: S303
                status,
                made,
                None if self.life is None else made + self.life,
                made if is_revoked and not self.unknown else None,
                None if self.unknown else reason,
            )
            .responder_id(self.named_by, self.signer.certificate)
        )
        if self.signer is not self.issuer:
            builder = builder.certificates([each.certificate for each in (*self.beside, self.signer)])
        if self.nonce:  # As with those who do: it is repeated where the question has one.
            for each in request.extensions:
                if isinstance(each.value, x509.OCSPNonce):
                    builder = builder.add_extension(each.value, critical=False)
        response = builder.sign(self.signer.key, hashes.SHA256())
        der, signature = response.public_bytes(Encoding.DER), response.signature
        return der.replace(signature, bytes((*signature[:-1], signature[-1] ^ 1))) if self.forged else der


def question_about(held: Held) -> bytes:
    """Return a request about *held* without a nonce, as for stapling."""
    return ask(held.certificate.serial_number, held.chain[0], nonce=False).der
