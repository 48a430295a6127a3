"""The fields that are joined here are those that the library would have built, byte for byte."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provisioning.ca.fields import common_name, encoded, joined, key_identifier, only_uri
from provisioning.ca.signing import hash_for, signature_algorithm, signer, with_signature
from provisioning.pki.keys import PrivateKey, spki_of
from tests.support.slow_keys import rsa_key

KEYS: dict[str, PrivateKey] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "RSA": rsa_key(),
}
EXTENSIONS = [
    (x509.BasicConstraints(ca=False, path_length=None), True),
    (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False),
    (x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://fleet/device/north/meter-17")]), False),
]
ISSUER = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Fleet Ünited")])
SUBJECT = x509.Name(
    [x509.NameAttribute(NameOID.COUNTRY_NAME, "DE"), x509.NameAttribute(NameOID.COMMON_NAME, "meter-17")]
)


@pytest.mark.parametrize("issuing", KEYS)
@pytest.mark.parametrize("certified", KEYS)
@pytest.mark.parametrize(
    ("begin", "life"),
    [
        (datetime(2026, 3, 1, 12, tzinfo=UTC), timedelta(days=30)),
        (datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC), timedelta(seconds=1)),  # UTCTime, then GeneralizedTime
    ],
)
@pytest.mark.parametrize("serial", [1, 0x7F, 0x80, (1 << 126) | 12345, (1 << 127) - 1])
def test_the_fields_are_the_library_s(
    issuing: str, certified: str, begin: datetime, life: timedelta, serial: int
) -> None:
    key, public_key = KEYS[issuing], KEYS[certified].public_key()
    builder = x509.CertificateBuilder(ISSUER, SUBJECT, public_key, serial, begin, begin + life)
    for value, critical in EXTENSIONS:
        builder = builder.add_extension(value, critical=critical)
    theirs = builder.sign(key, hash_for(key))
    ours = joined(
        signature_algorithm(key),
        ISSUER.public_bytes(),
        serial=serial,
        not_before=begin,
        not_after=begin + life,
        subject=SUBJECT.public_bytes(),
        spki=spki_of(public_key),
        extensions=[encoded(value, critical=critical) for value, critical in EXTENSIONS],
    )
    assert ours == theirs.tbs_certificate_bytes
    certificate = x509.load_der_x509_certificate(with_signature(ours, signature_algorithm(key), signer(key)(ours)))
    assert certificate.signature_algorithm_oid == theirs.signature_algorithm_oid
    issuer = x509.CertificateBuilder(ISSUER, ISSUER, key.public_key(), 2, begin, begin + life)
    certificate.verify_directly_issued_by(issuer.sign(key, hash_for(key)))


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_a_key_s_identifier_is_the_library_s(key: PrivateKey) -> None:
    public_key = key.public_key()
    assert key_identifier(spki_of(public_key)) == encoded(x509.SubjectKeyIdentifier.from_public_key(public_key))


@pytest.mark.parametrize("size", [1, 2, 63, 64])
def test_a_name_and_its_uri_are_the_library_s(size: int) -> None:
    name = "m" * size
    assert common_name(name) == x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]).public_bytes()
    uri = f"spiffe://{'d' * 3 * size}/device/{'g' * size}/{name}"  # Short, with one octet more, and with two.
    assert only_uri(uri) == encoded(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]))
