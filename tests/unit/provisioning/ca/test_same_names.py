"""Names are the same however a library writes them, and no others are."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from provisioning.ca.same_names import same_alternatives, same_subject

CN, ORGANIZATION = NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME
PRINTABLE, UTF8 = _ASN1Type.PrintableString, _ASN1Type.UTF8String
BMP, IA5 = _ASN1Type.BMPString, _ASN1Type.IA5String
URI = x509.UniformResourceIdentifier("spiffe://fleet.internal/broker/b")
HOST, OTHER = x509.DNSName("mqtt.example.org"), x509.DNSName("mqtt.example.com")
ADDRESS = x509.IPAddress(ipaddress.ip_address("192.0.2.1"))

Attribute = tuple[x509.ObjectIdentifier, str, _ASN1Type]


def name(*rdns: Sequence[Attribute]) -> bytes:
    return x509.Name(
        [x509.RelativeDistinguishedName([x509.NameAttribute(*each) for each in rdn]) for rdn in rdns]
    ).public_bytes()


HELD = name([(ORGANIZATION, "Acme", UTF8)], [(CN, "meter-1", UTF8)])


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (HELD, True),
        (name([(ORGANIZATION, "Acme", PRINTABLE)], [(CN, "meter-1", PRINTABLE)]), True),
        (name([(ORGANIZATION, "Acme", UTF8)], [(CN, "meter-1", PRINTABLE)]), True),
        (name([(ORGANIZATION, "Acme", UTF8)], [(CN, "meter-1", BMP)]), False),
        (name([(ORGANIZATION, "Acme", UTF8)], [(CN, "meter-1", IA5)]), False),
        (name([(ORGANIZATION, "Acme", UTF8)], [(CN, "Meter-1", UTF8)]), False),
        (name([(ORGANIZATION, "Acme", UTF8)], [(CN, "Meter-1", PRINTABLE)]), False),
        (name([(ORGANIZATION, "Acme", UTF8)], [(CN, "meter-10", PRINTABLE)]), False),
        (name([(CN, "meter-1", UTF8)], [(ORGANIZATION, "Acme", UTF8)]), False),
        (name([(CN, "meter-1", UTF8), (ORGANIZATION, "Acme", UTF8)]), False),
        (name([(CN, "meter-1", UTF8)]), False),
        (name([(CN, "Acme", UTF8)], [(ORGANIZATION, "meter-1", UTF8)]), False),
        (name(), False),
    ],
)
def test_subjects(other: bytes, same: bool) -> None:
    assert same_subject(HELD, other) is same
    assert same_subject(other, HELD) is same


def test_the_order_within_a_set_says_nothing() -> None:
    utf8 = name([(CN, "a", UTF8), (ORGANIZATION, "b", UTF8)])
    assert same_subject(utf8, name([(ORGANIZATION, "b", PRINTABLE), (CN, "a", PRINTABLE)]))


@pytest.mark.parametrize(
    ("asked", "same"),
    [
        ((URI, HOST, ADDRESS), True),
        ((HOST, ADDRESS, URI), True),
        ((URI, HOST), False),
        ((URI, HOST, HOST, ADDRESS), False),
        ((URI, OTHER, ADDRESS), False),
        ((URI, HOST, ADDRESS, OTHER), False),
        ((URI, x509.RFC822Name("mqtt.example.org"), ADDRESS), False),
    ],
)
def test_alternative_names(asked: Sequence[x509.GeneralName], same: bool) -> None:
    held = x509.SubjectAlternativeName([URI, HOST, ADDRESS]).public_bytes()
    assert same_alternatives(x509.SubjectAlternativeName(asked).public_bytes(), held) is same
    assert not same_alternatives(None, held)
