"""The service's OCSP responder in this process, on a real store."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import ocsp

from provisioning.pki.role import Role
from provisioning.revocation.ocsp import OcspResponder
from provisioning.revocation.ocsp_signer import RenewedOcspSigner
from provisioning.revocation.service import RevocationService
from provisioning.store import devices
from tests.support.fleet import Fleet
from tests.support.ocsp import SHA256, request_der

DAY = timedelta(days=1)


@dataclass
class Responding:
    """A responder on a fleet's store."""

    fleet: Fleet
    signer: RenewedOcspSigner
    responder: OcspResponder
    revocation: RevocationService

    @classmethod
    async def on(cls, fleet: Fleet) -> Responding:
        """Return a responder for *fleet*'s CA."""
        await fleet.database.write(
            lambda connection: devices.add(connection, "provisioning", Role.SERVICE, None, fleet.clock())
        )
        signer = RenewedOcspSigner(
            issuer=fleet.issuer,
            database=fleet.database,
            serial_numbers=fleet.serial_numbers,
            owner="provisioning",
            life=7 * DAY,
            clock=fleet.clock,
            replaced=lambda: responder.forget_all(),  # noqa: PLW0108 - it is made below.
        )
        await signer.renew()
        responder = OcspResponder(fleet.database, [signer], fleet.clock, DAY / 2)
        revocation = RevocationService(fleet.database, fleet.clock, (responder.forget_changed,), responder.forget_all)
        return cls(fleet, signer, responder, revocation)

    @property
    def issuer(self) -> x509.Certificate:
        return self.fleet.authority.issuing_ca.certificate

    async def ask(
        self,
        certificate: x509.Certificate,
        algorithm: hashes.HashAlgorithm = SHA256,
        *,
        issuer: x509.Certificate | None = None,
        nonce: bytes | None = None,
    ) -> ocsp.OCSPResponse:
        answer = await self.responder.answer(request_der(certificate, issuer or self.issuer, algorithm, nonce=nonce))
        response = ocsp.load_der_ocsp_response(answer.der)
        (signer,) = response.certificates
        key = signer.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert response.signature_hash_algorithm is not None
        key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(response.signature_hash_algorithm))
        signer.verify_directly_issued_by(self.issuer)
        return response
