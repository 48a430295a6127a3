"""Which manufacturers' certificates TLS lets through, before anybody here judges them: docs/enrolment.md says so."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from provisioning.ca.der import OCTET_STRING, SEQUENCE, element, object_identifier
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.keys import generate_key
from provisioning.pki.tls import ClientCertificate, CredentialPem, client_context, server_context
from tests.support.manufacturer import Manufacturer
from tests.support.pki import shared_pki
from tests.support.slow_keys import rsa_key

PKI = shared_pki()
SERVER = PKI.broker()
OF_ACME = x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme")]))
OF_OTHERS = x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Others")]))
UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
HARDWARE_MODULE_NAME = x509.SubjectAlternativeName(
    [
        x509.OtherName(
            ObjectIdentifier("1.3.6.1.5.5.7.8.4"),
            element(SEQUENCE, object_identifier("1.3.6.1.4.1.55555.2") + element(OCTET_STRING, b"SN17")),
        )
    ]
)
"""RFC 4108 §5."""


def lets_through(idevid: bytes, *manufacturers: Manufacturer) -> bool:
    """Whether a listener that knows *manufacturers* completes a handshake with *idevid*, a certificate with its key."""
    listener = server_context(
        SERVER.credential,
        "".join(each.pem for each in manufacturers),
        client_certificate=ClientCertificate.OPTIONAL,
        allow_tls12=True,
        caller_checks_dates=True,
    )
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    device = client_context(PKI.anchors, CredentialPem(idevid))
    client = device.wrap_bio(to_client, to_server, server_hostname="localhost")
    server = listener.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    while waiting:
        for each in list(waiting):
            try:
                each.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError:
                assert each is server
                return False
            waiting.remove(each)
    assert server.getpeercert(binary_form=True)
    return True


@pytest.mark.parametrize(
    ("name", "same"),
    [
        (Manufacturer(strings=_ASN1Type.PrintableString).name, True),
        (Manufacturer(strings=_ASN1Type.T61String).name, True),
        (Manufacturer(strings=_ASN1Type.BMPString).name, True),
        (Manufacturer(" ACME  devices").name, True),
        (Manufacturer("Acme device").name, False),
    ],
    ids=["printable", "teletex", "bmp", "case and spaces", "another"],
)
def test_who_is_let_through_by_a_name_in_other_strings_is_found_to_be_issued_by_it(name: x509.Name, same: bool) -> None:
    acme = Manufacturer()
    certificate, pem = acme.idevid("SN17", issuer=name)
    assert certificate.issuer.public_bytes() != acme.name.public_bytes()
    assert lets_through(pem, acme) is is_issued_by(certificate, acme.certificate) is same
    assert not is_issued_by(certificate, Manufacturer().certificate), "another's key"
    rsa_ca = Manufacturer(key=rsa_key())
    assert is_issued_by(rsa_ca.idevid("SN17", issuer=name)[0], rsa_ca.certificate) is same


def eku(*oids: ObjectIdentifier) -> Sequence[tuple[x509.ExtensionType, bool]]:
    return [(x509.ExtendedKeyUsage(oids), False)]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ({}, True),
        ({"end": datetime.now(UTC) - timedelta(hours=1)}, True),  # Judged here, with a sentence.
        ({"key": ec.generate_private_key(ec.SECP384R1())}, True),
        ({"key": rsa_key()}, True),
        ({"extensions": [(HARDWARE_MODULE_NAME, False)]}, True),
        ({"extensions": [(HARDWARE_MODULE_NAME, True)]}, True),
        ({"extensions": eku(ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)}, True),
        ({"extensions": eku(ExtendedKeyUsageOID.SERVER_AUTH)}, False),
        ({"extensions": eku(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE)}, False),
        ({"extensions": [(UNKNOWN, False)]}, True),
        ({"extensions": [(UNKNOWN, True)]}, False),
    ],
)
def test_what_a_device_s_certificate_may_say(device: dict[str, Any], expected: bool) -> None:
    acme = Manufacturer()
    assert lets_through(acme.idevid("SN17", **device)[1], acme) is expected


@pytest.mark.parametrize(("permitted", "expected"), [(OF_ACME, True), (OF_OTHERS, False)])
def test_a_ca_s_name_constraint_holds(permitted: x509.GeneralName, expected: bool) -> None:
    acme = Manufacturer(extensions=[(x509.NameConstraints([permitted], None), True)])
    assert lets_through(acme.idevid("SN17")[1], acme) is expected


@pytest.mark.parametrize("identified", [True, False], ids=["with a key identifier", "without"])
def test_two_cas_of_one_name_are_told_apart_by_the_key_identifier(identified: bool) -> None:
    keys = [generate_key() for _ in range(2)]
    cas = [
        Manufacturer(key=key, extensions=[(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)])
        for key in keys
    ]
    said = []
    for key, ca in zip(keys, cas, strict=True):
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        device = ca.idevid("SN17", extensions=[(issuer, False)] if identified else [])[1]
        said.append(lets_through(device, *cas))
    assert sum(said) == (2 if identified else 1)
