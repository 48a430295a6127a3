"""Every profile with every kind of key, before the eyes of another linter."""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID

from provisioning.ca.ceremony import Authority, found_authority
from provisioning.ca.issuer import IssuanceRequest, Issuer, IssuerUrls, OcspSignerRequest
from provisioning.ca.name_policy import SubjectNames
from provisioning.ca.profile import KeyType, ProfileConfig, ProfileName, profile_of
from provisioning.pki.identity import Identity
from provisioning.pki.keys import PrivateKey, generate_key
from tests.support.pkilint import findings
from tests.support.requests import NOON
from tests.support.slow_keys import rsa_key

SERIAL = 1 << 126 | 5
URLS = IssuerUrls(
    "http://ca.example.org/crl/issuing-ca.crl", "http://ca.example.org/ca/issuing-ca.crt", "http://ca.example.org/ocsp"
)

WAIVERS = {
    r"INFO pkix\.subject_key_identifier_method_1_identified": (
        "It only says which of RFC 5280's two methods made the key identifier. Method 1 is meant: with it the key "
        "identifier is OCSP's SHA-1 key hash too, and old clients know no other."
    ),
    r'ERROR pkix\.invalid_uri_syntax Invalid URI syntax: "spiffe://fleet\.internal/[a-z]+/north/meter-17"': (
        "The identity is a URI as RFC 5280 §4.2.1.6 wants it, with scheme and authority, and as the SPIFFE standard "
        "writes it. The library that the linter asks knows web addresses only."
    ),
}
"""What the linter says and why it stays. A waiver that nothing needs is a defect: see the last test."""


def unwaived(certificate: x509.Certificate) -> list[str]:
    return [
        finding for finding in findings(certificate) if not any(re.fullmatch(waiver, finding) for waiver in WAIVERS)
    ]


KEYS: dict[KeyType, PrivateKey] = {
    KeyType.P256: generate_key(),
    KeyType.P384: ec.generate_private_key(ec.SECP384R1()),
    KeyType.ED25519: ed25519.Ed25519PrivateKey.generate(),
    KeyType.RSA: rsa_key(),
}
EVERYTHING = ProfileConfig(
    "sensor",
    timedelta(days=90),
    role="device",
    extended_key_usages=("clientAuth", "serverAuth", "1.3.6.1.4.1.99999.1"),
    organization="Example Works",
    dns_patterns=("{name}.{group}.devices.example.org",),
    honoured_attributes=("serialNumber", "country"),
    honoured_domains=("plant.example.org",),
    honoured_networks=("10.0.0.0/8",),
)
ASKED = SubjectNames(
    ("press-4.plant.example.org",),
    (ipaddress.ip_address("10.1.2.3"),),
    (x509.NameAttribute(NameOID.SERIAL_NUMBER, "SN-4711"), x509.NameAttribute(NameOID.COUNTRY_NAME, "DE")),
)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return found_authority("fleet.internal", NOON, (SERIAL + 1, SERIAL + 2), URLS)


@pytest.fixture(scope="module")
def issuer(authority: Authority) -> Issuer:
    return Issuer(authority.issuing_ca.certificate, authority.issuing_ca.key, URLS)


@pytest.mark.parametrize("kind", KeyType)
@pytest.mark.parametrize("config", [*(ProfileConfig(each, timedelta(days=30)) for each in ProfileName), EVERYTHING],
                         ids=lambda config: config.name)  # fmt: skip
def test_a_certificate_of_each_profile_and_key(issuer: Issuer, config: ProfileConfig, kind: KeyType) -> None:
    profile = profile_of(config)
    identity = Identity("fleet.internal", profile.role, "meter-17", "north")
    names = profile.names.names_for(identity, SubjectNames(), ASKED)
    request = IssuanceRequest(
        identity, KEYS[kind].public_key(), SERIAL, NOON, names.dns_names, names.ip_addresses,
        attributes=names.attributes,
    )  # fmt: skip
    certificate = issuer.issue(issuer.prepare(profile, request))
    assert unwaived(certificate) == []
    if config is EVERYTHING:
        assert certificate.subject.rfc4514_string() == "CN=meter-17,2.5.4.5=SN-4711,O=Example Works,C=DE"
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = ["meter-17.north.devices.example.org", "press-4.plant.example.org"]
        assert found.get_values_for_type(x509.DNSName) == hosts


def test_the_certificates_of_the_cas_and_of_the_ocsp_signer(authority: Authority, issuer: Issuer) -> None:
    signer = issuer.prepare_ocsp_signer(OcspSignerRequest(generate_key().public_key(), SERIAL, NOON, timedelta(days=7)))
    for certificate in (authority.root_ca.certificate, authority.issuing_ca.certificate, issuer.issue(signer)):
        assert unwaived(certificate) == []


def test_the_linter_finds_what_is_wrong_and_every_waiver_is_needed(authority: Authority, issuer: Issuer) -> None:
    faulty = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.root_ca.certificate.subject)
        .public_key(generate_key().public_key())
        .serial_number(SERIAL)
        .not_valid_before(NOON)
        .not_valid_after(NOON + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("a.example.org")]), critical=False)
        .sign(authority.root_ca.key, hashes.SHA256())
    )
    assert any(each.startswith("ERROR") for each in unwaived(faulty))
    profile = profile_of(ProfileConfig(ProfileName.DEVICE, timedelta(days=30)))
    identity = Identity("fleet.internal", profile.role, "meter-17", "north")
    request = IssuanceRequest(identity, KEYS[KeyType.P256].public_key(), SERIAL, NOON)
    found = findings(issuer.issue(issuer.prepare(profile, request)))
    assert [sum(bool(re.fullmatch(waiver, each)) for each in found) for waiver in WAIVERS] == [1, 1]
