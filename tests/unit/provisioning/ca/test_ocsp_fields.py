"""The responses that are joined here are those that the library would have built, byte for byte."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from provisioning.ca import ocsp_fields
from provisioning.ca.crl import REASON_CODES
from provisioning.ca.ocsp import OcspSigner, Revoked, read_request
from provisioning.ca.signing import hash_for, signature_algorithm
from provisioning.pki.keys import PrivateKey
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.slow_keys import rsa_key

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "issuing CA")])
KEYS: dict[str, PrivateKey] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "RSA": rsa_key(),
}
HASHES = (hashes.SHA1(), hashes.SHA256(), hashes.SHA384(), hashes.SHA512())  # noqa: S303 - What clients ask in.
STATUSES: list[tuple[bytes, ocsp.OCSPCertStatus, datetime | None, x509.ReasonFlags | None]] = [
    (ocsp_fields.GOOD, ocsp.OCSPCertStatus.GOOD, None, None),
    (ocsp_fields.UNKNOWN, ocsp.OCSPCertStatus.UNKNOWN, None, None),
    (ocsp_fields.revoked(NOON, None), ocsp.OCSPCertStatus.REVOKED, NOON, None),
    *(
        (ocsp_fields.revoked(NOON, code), ocsp.OCSPCertStatus.REVOKED, NOON, x509.ReasonFlags(reason))
        for reason, code in REASON_CODES.items()
    ),
]


def certificate_of(key: PrivateKey) -> x509.Certificate:
    builder = x509.CertificateBuilder(NAME, NAME, key.public_key(), 7, NOON, NOON + timedelta(days=7))
    return builder.sign(key, hash_for(key))


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("algorithm", HASHES, ids=lambda each: each.name)
@pytest.mark.parametrize("nonce", [None, x509.OCSPNonce(b"n"), x509.OCSPNonce(bytes(128))])
def test_the_response_is_the_library_s(
    kind: str, algorithm: hashes.SHA1 | hashes.SHA256 | hashes.SHA384 | hashes.SHA512, nonce: x509.OCSPNonce | None
) -> None:
    key = KEYS[kind]
    certificate = certificate_of(key)
    asked = ocsp.OCSPRequestBuilder().add_certificate(certificate, certificate, algorithm).build()
    key_hash = ocsp.OCSPRequestBuilder().add_certificate(certificate, certificate, hashes.SHA1()).build()  # noqa: S303
    signed_with = signature_algorithm(key)
    for status, word, since, flag in STATUSES:
        builder = (
            ocsp.OCSPResponseBuilder()
            .add_response_by_hash(asked.issuer_name_hash, asked.issuer_key_hash, asked.serial_number, algorithm, word,
                                  NOON, NOON + timedelta(hours=1), since, flag)
            .responder_id(ocsp.OCSPResponderEncoding.HASH, certificate)
            .certificates([certificate])
        )  # fmt: skip
        if nonce is not None:
            builder = builder.add_extension(nonce, critical=False)
        theirs = builder.sign(key, hash_for(key))
        fields = ocsp_fields.joined(
            responder=ocsp_fields.responder(key_hash.issuer_key_hash),
            produced_at=theirs.produced_at_utc,
            certificate_id=ocsp_fields.certificate_id_head(
                algorithm.name, asked.issuer_name_hash, asked.issuer_key_hash, bare=False
            ),
            serial=asked.serial_number,
            status=status,
            this_update=NOON,
            next_update=NOON + timedelta(hours=1),
            nonce=nonce,
        )
        assert fields == theirs.tbs_response_bytes
        certificates = ocsp_fields.signers_certificate(certificate.public_bytes(Encoding.DER))
        whole = ocsp_fields.response(fields, signed_with, theirs.signature, certificates)
        assert whole == theirs.public_bytes(Encoding.DER)


def test_an_answer_is_produced_when_the_status_was_true_and_its_signature_verifies() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = certificate_of(key)
    request = ocsp.OCSPRequestBuilder().add_certificate(certificate, certificate, hashes.SHA256()).build()
    asked = read_request(request.public_bytes(Encoding.DER))
    status = Revoked(NOON - timedelta(days=1), RevocationReason.KEY_COMPROMISE)
    der = OcspSigner(certificate, key).sign(asked, status, NOON, NOON + timedelta(hours=1))
    answer = ocsp.load_der_ocsp_response(der)
    assert answer.produced_at_utc == NOON
    assert answer.revocation_reason is x509.ReasonFlags.key_compromise
    key.public_key().verify(answer.signature, answer.tbs_response_bytes, ec.ECDSA(hashes.SHA256()))
