from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

from provisioning.ca.certificate_message import certificate_message
from provisioning.pki.keys import generate_key
from tests.support.requests import NOON


def certificate(names: int, serial: int = 1) -> x509.Certificate:
    key, name = generate_key(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "m")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), serial, NOON, NOON + timedelta(days=1))
    if names:
        hosts = [x509.DNSName(f"host-{number}.example.org") for number in range(names)]
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    return builder.sign(key, hashes.SHA256())


@pytest.mark.parametrize("names", [0, 5, 1000, 5000], ids=["small", "usual", "large", "larger"])
def test_the_message_is_the_library_s(names: int) -> None:
    one = certificate(names)
    theirs = pkcs7.serialize_certificates([one], Encoding.DER)
    assert certificate_message(one.public_bytes(Encoding.DER)) == theirs


def test_several_are_in_the_order_that_the_library_has_them_in_however_they_are_given() -> None:
    several = [certificate(names, serial) for names, serial in ((0, 1), (0, 2), (5, 1), (20, 1), (20, 1 << 150))]
    for count in range(2, len(several) + 1):
        for given in itertools.permutations(several, count):
            ours = certificate_message(*(each.public_bytes(Encoding.DER) for each in given))
            assert ours == pkcs7.serialize_certificates(list(given), Encoding.DER)
