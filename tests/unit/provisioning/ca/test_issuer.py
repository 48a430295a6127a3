from __future__ import annotations

import ipaddress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provisioning.ca.ceremony import Authority, found_authority
from provisioning.ca.issuer import IssuanceRefused, IssuanceRequest, Issuer, IssuerUrls
from provisioning.ca.profile import (
    MAXIMUM_LIFE,
    InvalidProfile,
    Profile,
    ProfileConfig,
    ProfileName,
    profile_of,
)
from provisioning.ca.signing import hash_for
from provisioning.pki.identity import Identity, identity_of
from provisioning.pki.keys import PrivateKey, generate_key, key_identifier
from provisioning.pki.role import Role
from tests.support.requests import NOON
from tests.support.slow_keys import rsa_key

URLS = IssuerUrls("http://ca.example.org/crl/issuing-ca.crl", "http://ca.example.org/ca/issuing-ca.crt")
SERIAL = 1 << 126 | 5


@pytest.fixture(scope="module")
def authority() -> Authority:
    return found_authority("fleet.internal", NOON, (SERIAL + 1, SERIAL + 2), URLS)


@pytest.fixture
def issuer(authority: Authority) -> Issuer:
    return Issuer(authority.issuing_ca.certificate, authority.issuing_ca.key, URLS)


def profile(name: ProfileName = ProfileName.DEVICE, life: timedelta = timedelta(days=30)) -> Profile:
    return profile_of(ProfileConfig(name, life))


def request(role: Role = Role.DEVICE, **changes: object) -> IssuanceRequest:
    group = "north" if role is Role.DEVICE else None
    identity = Identity("fleet.internal", role, "meter-17", group)
    return replace(IssuanceRequest(identity, generate_key().public_key(), SERIAL, NOON), **changes)  # type: ignore[arg-type]


def test_a_device_certificate_has_every_field_of_its_profile(issuer: Issuer) -> None:
    asked = request()
    certificate = issuer.issue(issuer.prepare(profile(), asked))
    certificate.verify_directly_issued_by(issuer.certificate)
    assert identity_of(certificate) == asked.identity
    assert certificate.serial_number == SERIAL
    assert certificate.not_valid_before_utc == NOON - timedelta(minutes=1)
    assert certificate.not_valid_after_utc == NOON + timedelta(days=30)
    extensions = certificate.extensions
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    authority_key = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert authority_key.key_identifier == issuer.key_id == key_identifier(issuer.certificate.public_key())
    (point,) = extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    assert URLS.crl is not None
    assert point.full_name == [x509.UniformResourceIdentifier(URLS.crl)]


@pytest.mark.parametrize(
    ("name", "usages"),
    [
        (ProfileName.DEVICE, [ExtendedKeyUsageOID.CLIENT_AUTH]),
        (ProfileName.SERVICE, [ExtendedKeyUsageOID.CLIENT_AUTH]),
        (ProfileName.OPERATOR, [ExtendedKeyUsageOID.CLIENT_AUTH]),
        (ProfileName.BROKER, [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
        (ProfileName.PROVISIONING, [ExtendedKeyUsageOID.SERVER_AUTH]),
    ],
)
def test_each_profile_fixes_what_the_certificate_is_for(
    issuer: Issuer, name: ProfileName, usages: list[x509.ObjectIdentifier]
) -> None:
    chosen = profile(name)
    certificate = issuer.issue(issuer.prepare(chosen, request(chosen.role)))
    assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == usages


def test_server_names_are_for_those_who_serve(issuer: Issuer) -> None:
    names: dict[str, Any] = {"dns_names": ("mqtt.example.org",), "ip_addresses": (ipaddress.ip_address("::1"),)}
    certificate = issuer.issue(issuer.prepare(profile(ProfileName.BROKER), request(Role.BROKER, **names)))
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.DNSName) == ["mqtt.example.org"]
    assert found.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("::1")]
    with pytest.raises(IssuanceRefused, match="the device profile does not allow these names"):
        issuer.prepare(profile(), request(**names))


def test_what_is_prepared_is_signed_once_and_by_its_own_issuer(authority: Authority, issuer: Issuer) -> None:
    other = Issuer(authority.issuing_ca.certificate, authority.issuing_ca.key)
    prepared = issuer.prepare(profile(), request())
    with pytest.raises(IssuanceRefused, match="another issuer"):
        other.issue(prepared)
    issuer.issue(prepared)
    with pytest.raises(IssuanceRefused, match="signed already"):
        issuer.issue(prepared)


def test_nothing_lives_longer_than_its_issuer(issuer: Issuer) -> None:
    late = issuer.certificate.not_valid_after_utc - timedelta(days=1)
    certificate = issuer.issue(issuer.prepare(profile(), request(now=late)))
    assert certificate.not_valid_after_utc == issuer.certificate.not_valid_after_utc
    with pytest.raises(IssuanceRefused, match="the issuing CA expired on 2032-02-29"):
        issuer.prepare(profile(), request(now=issuer.certificate.not_valid_after_utc))


def test_a_wish_shortens_a_life_and_never_lengthens_it(issuer: Issuer) -> None:
    for wish, life in ((timedelta(seconds=5), timedelta(seconds=5)), (timedelta(days=99), timedelta(days=30))):
        certificate = issuer.issue(issuer.prepare(profile(), request(life=wish)))
        assert certificate.not_valid_after_utc == NOON + life


@pytest.mark.parametrize(
    ("changes", "finding"),
    [
        ({"serial": 7}, "serial number has 3 bits, not 64 to 159"),
        ({"serial": 1 << 158}, None),
        (
            {"identity": Identity("fleet.internal", Role.OPERATOR, "admin")},
            "role operator does not fit the device profile",
        ),
    ],
)
def test_a_request_that_breaks_a_rule_is_not_prepared(
    issuer: Issuer, changes: dict[str, Any], finding: str | None
) -> None:
    if finding is None:
        issuer.prepare(profile(), request(**changes))
        return
    with pytest.raises(IssuanceRefused, match=finding):
        issuer.prepare(profile(), request(**changes))


def test_the_key_must_be_the_certificate_s(authority: Authority) -> None:
    with pytest.raises(ValueError, match="does not belong"):
        Issuer(authority.issuing_ca.certificate, generate_key())


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa_key(),
    ],
    ids=["P-384", "Ed25519", "RSA"],
)
def test_an_issuer_may_have_any_kind_of_key(key: PrivateKey) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
    ca = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(SERIAL)
        .not_valid_before(NOON)
        .not_valid_after(NOON + timedelta(days=400))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hash_for(key))
    )
    issuer = Issuer(ca, key)
    issuer.issue(issuer.prepare(profile(), request())).verify_directly_issued_by(ca)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ProfileConfig(ProfileName.DEVICE, timedelta()), "profiles.device.life is"),
        (ProfileConfig(ProfileName.BROKER, MAXIMUM_LIFE + timedelta(seconds=1)), "profiles.broker.life is"),
        (ProfileConfig(ProfileName.DEVICE, timedelta(days=1), timedelta(hours=2)), "profiles.device.backdate is"),
        (ProfileConfig(ProfileName.DEVICE, timedelta(days=1), timedelta(seconds=-1)), "profiles.device.backdate is"),
    ],
)
def test_a_profile_keeps_within_its_limits(config: ProfileConfig, words: str) -> None:
    with pytest.raises(InvalidProfile, match=words):
        profile_of(config)


def test_the_ceremony_makes_a_root_and_one_ca_under_it(authority: Authority) -> None:
    root, issuing = authority.root_ca.certificate, authority.issuing_ca.certificate
    root.verify_directly_issued_by(root)
    issuing.verify_directly_issued_by(root)
    constraints = [each.extensions.get_extension_for_class(x509.BasicConstraints) for each in (root, issuing)]
    assert [(each.critical, each.value.path_length) for each in constraints] == [(True, None), (True, 0)]
    assert issuing.not_valid_after_utc < root.not_valid_after_utc
    without_url = found_authority("fleet.internal", NOON, (1, 2)).issuing_ca.certificate
    with pytest.raises(x509.ExtensionNotFound):
        without_url.extensions.get_extension_for_class(x509.CRLDistributionPoints)
