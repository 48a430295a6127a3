"""Name constraints of a CA, and the names that its certificates may have: openssl has the last word."""

from __future__ import annotations

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from provisioning.ca.permitted_names import names_refused
from provisioning.pki.keys import generate_key
from tests.support.openssl import openssl
from tests.support.pki import pem_of

NAMES = x509.SubjectAlternativeName(
    [
        x509.UniformResourceIdentifier("spiffe://fleet.internal/service/provisioning"),
        x509.DNSName("ca.example.org"),
        x509.IPAddress(ipaddress.ip_address("10.0.0.7")),
    ]
)
DNS, URI = x509.DNSName, x509.UniformResourceIdentifier


def network(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_network(text))


@pytest.mark.parametrize(
    ("permitted", "excluded", "refused"),
    [
        ([DNS("example.org"), URI("fleet.internal"), network("10.0.0.0/8")], None, 0),
        ([DNS("CA.example.org")], None, 0),
        ([DNS(".example.org"), URI(".internal")], None, 0),
        ([DNS("devices.example")], None, 1),
        ([DNS("a.example.org"), DNS("ple.org")], None, 1),
        ([URI("x.example")], None, 1),
        ([URI("internal"), DNS(".ca.example.org"), network("fd00::/8")], None, 3),
        (None, [DNS("org"), URI(".internal"), network("10.0.0.7/32")], 3),
        (None, [DNS("org.org"), URI("internal"), network("::/0")], 0),
        ([x509.RFC822Name("example.org")], None, 0),
    ],
)
def test_what_is_refused_is_what_openssl_refuses(
    tmp_path: Path, permitted: list[x509.GeneralName] | None, excluded: list[x509.GeneralName] | None, refused: int
) -> None:
    constraints = x509.NameConstraints(permitted, excluded)
    assert len(names_refused(constraints, NAMES)) == refused
    key, now = generate_key(), datetime.now(UTC)
    ca, leaf = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, each)]) for each in ("CA", "provisioning"))
    for subject, extension in ((ca, constraints), (leaf, NAMES)):
        builder = x509.CertificateBuilder(ca, subject, key.public_key(), 7, now, now + timedelta(days=1))
        is_ca = x509.BasicConstraints(ca=subject is ca, path_length=None)
        signed = builder.add_extension(is_ca, critical=True).add_extension(extension, critical=subject is ca)
        (tmp_path / str(subject is ca)).write_bytes(pem_of(signed.sign(key, hashes.SHA256())))
    said = openssl("verify", "-CAfile", tmp_path / "True", tmp_path / "False", check=False)
    assert said.endswith(b": OK\n") == (refused == 0)
