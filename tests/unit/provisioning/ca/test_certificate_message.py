from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from cryptography.x509.oid import NameOID

from provisioning.ca.certificate_message import certificate_message
from provisioning.pki.keys import generate_key
from tests.support.requests import NOON


@pytest.mark.parametrize("names", [0, 5, 1000, 5000], ids=["small", "usual", "large", "larger"])
def test_the_message_is_the_library_s(names: int) -> None:
    key, name = generate_key(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "m")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOON, NOON + timedelta(days=1))
    if names:
        hosts = [x509.DNSName(f"host-{number}.example.org") for number in range(names)]
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    theirs = pkcs7.serialize_certificates([certificate], Encoding.DER)
    assert certificate_message(certificate.public_bytes(Encoding.DER)) == theirs
