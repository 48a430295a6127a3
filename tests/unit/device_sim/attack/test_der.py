"""Certificates cut open and signed again are what they claim to be, by a parser that is not ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.serialization import Encoding

from device_sim.attack import der
from device_sim.attack.issuer import Issuer
from device_sim.credentials.certification import common_name
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role
from provisioning.pki.tls import client_context

CA = Issuer.founded(common_name("CA"))
METER = Identity("fleet.internal", Role.DEVICE, "meter-1", "meters")


def test_the_founded_ca_is_self_signed_and_issues_what_verifies() -> None:
    CA.certificate.verify_directly_issued_by(CA.certificate)
    CA.issue(METER).certificate.verify_directly_issued_by(CA.certificate)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 255, 256, 70_000])
def test_an_element_is_read_back(size: int) -> None:
    whole = der.element(0x04, bytes(size))
    assert der.content(whole) == bytes(size)
    assert der.elements(whole + b"\x05\x00") == [whole, b"\x05\x00"]


def test_the_serial_number_is_replaced_and_the_signature_is_good() -> None:
    paper = CA.issue(METER)
    certificate = x509.load_der_x509_certificate(der.with_serial(paper.certificate, b"\x01" * 33, CA.key))
    certificate.verify_directly_issued_by(CA.certificate)
    assert certificate.serial_number == int.from_bytes(b"\x01" * 33)
    assert certificate.subject == paper.certificate.subject


def test_a_sha1_signature_is_a_good_one_over_sha1() -> None:
    certificate = x509.load_der_x509_certificate(der.with_sha1(CA.issue(METER).certificate, CA.key))
    public_key = CA.certificate.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    public_key.verify(certificate.signature, certificate.tbs_certificate_bytes, ec.ECDSA(SHA1()))  # noqa: S303 - the attack


@pytest.mark.parametrize(
    "change", [der.with_broken_signature, lambda whole: der.with_other_name(whole, "meter-1", "meter-2")]
)
def test_a_changed_certificate_parses_and_does_not_verify(change: Callable[[x509.Certificate], bytes]) -> None:
    changed = x509.load_der_x509_certificate(change(CA.issue(METER).certificate))
    with pytest.raises(InvalidSignature):
        changed.verify_directly_issued_by(CA.certificate)


def test_openssl_takes_a_key_that_only_pretends() -> None:
    paper = CA.issue(METER)
    pem = paper.shown_as(paper.certificate.public_bytes(Encoding.PEM), der.key_pretending_to_be(paper.certificate))
    client_context(CA.pem.decode(), pem)


def test_a_crl_names_what_it_is_given() -> None:
    crl = x509.load_pem_x509_crl(CA.crl([5, 9]))
    assert [entry.serial_number for entry in crl] == [5, 9]
    assert crl.is_signature_valid(CA.certificate.public_key())  # type: ignore[arg-type]
