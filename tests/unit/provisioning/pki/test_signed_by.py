"""Lists and answers are believed from CA keys of every kind: from that CA alone, and over no weak hash."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from provisioning.pki.crl import CrlProblem, CrlRefused, parse, verify
from provisioning.pki.ocsp import OcspRefused, ask, read_answer
from tests.support.crl import crl
from tests.support.ocsp import SHA1
from tests.support.over_sha1 import crl_over_sha1, ocsp_over_sha1
from tests.support.pki import Held, shared_device, shared_pki
from tests.support.slow_keys import rsa_key

PKI = shared_pki()
METER = shared_device("meter-1")
NOW = datetime.now(UTC).replace(microsecond=0)
HOUR = timedelta(hours=1)
KINDS = ["EC", "RSA", "Ed25519", "Ed448"]


def new_key(kind: str, exponent: int) -> Any:
    match kind:
        case "EC":
            return ec.generate_private_key(ec.SECP256R1())
        case "RSA":
            return rsa_key(exponent=exponent)
        case "Ed25519":
            return ed25519.Ed25519PrivateKey.generate()
        case _:
            return ed448.Ed448PrivateKey.generate()


def hash_for(key: object) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()


def authority(kind: str, exponent: int = 65537) -> Held:
    """Return a CA like the issuing one, but for its key; of RSA there is one of each *exponent*, of the same size."""
    key = new_key(kind, exponent)
    like = PKI.issuing.certificate
    builder = (
        x509.CertificateBuilder(like.subject, like.subject, key.public_key(), 1)
        .not_valid_before(like.not_valid_before_utc)
        .not_valid_after(like.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )
    return Held(builder.sign(key, hash_for(key)), key)


AUTHORITIES = {kind: authority(kind) for kind in KINDS}
"""One of each, and of the same name."""
OTHERS = {kind: authority(kind, 3) for kind in KINDS}


def list_of(issuer: Held, rsa_padding: padding.PSS | None = None) -> bytes:
    builder = x509.CertificateRevocationListBuilder(issuer.certificate.subject, NOW, NOW + HOUR)
    builder = builder.add_extension(x509.CRLNumber(1), critical=False)
    signed = builder.sign(issuer.key, hash_for(issuer.key), rsa_padding=rsa_padding)
    return signed.public_bytes(Encoding.DER)


@pytest.mark.parametrize("kind", KINDS)
def test_a_list_is_believed_from_the_key_that_has_signed_it(kind: str) -> None:
    listed = parse(list_of(AUTHORITIES[kind]))
    verify(listed, AUTHORITIES[kind].certificate)
    for other in (OTHERS[kind], *(each for name, each in AUTHORITIES.items() if name != kind)):
        with pytest.raises(CrlRefused) as caught:
            verify(listed, other.certificate)
        assert caught.value.code is CrlProblem.CRL_BAD_SIGNATURE


def test_a_list_may_be_padded_in_either_way() -> None:
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
    verify(parse(list_of(AUTHORITIES["RSA"], pss)), AUTHORITIES["RSA"].certificate)
    with pytest.raises(CrlRefused):
        verify(parse(list_of(AUTHORITIES["RSA"], pss)), OTHERS["RSA"].certificate)


def test_a_list_over_a_weak_hash_is_not_believed() -> None:
    listed = parse(crl_over_sha1(crl(PKI.issuing), PKI.issuing.key))
    with pytest.raises(CrlRefused, match="signed with the weak hash sha1") as caught:
        verify(listed, PKI.issuing.certificate)
    assert caught.value.code is CrlProblem.CRL_BAD_SIGNATURE


def read(issuer: Held, signer: Held, *, weak: bool = False) -> bool:
    """Whether what *signer* answers is believed, who calls himself by the name of *issuer*."""
    builder = ocsp.OCSPResponseBuilder().add_response(
        METER.certificate, issuer.certificate, SHA1, ocsp.OCSPCertStatus.GOOD, NOW, NOW + HOUR, None, None
    )
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.NAME, signer.certificate)
    der = builder.sign(signer.key, hash_for(signer.key)).public_bytes(Encoding.DER)
    if weak:
        der = ocsp_over_sha1(der, signer.key)
    question = ask(METER.certificate.serial_number, issuer.certificate)
    return read_answer(der, question, METER.certificate.serial_number, issuer.certificate, NOW).known


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_is_believed_from_the_key_that_has_signed_it(kind: str) -> None:
    assert read(AUTHORITIES[kind], AUTHORITIES[kind])
    for other in (OTHERS[kind], *(each for name, each in AUTHORITIES.items() if name != kind)):
        with pytest.raises(OcspRefused, match="the signature is not"):
            read(AUTHORITIES[kind], other)


def test_an_answer_over_a_weak_hash_is_not_believed() -> None:
    with pytest.raises(OcspRefused, match="signed with the weak hash sha1"):
        read(PKI.issuing, PKI.issuing, weak=True)
