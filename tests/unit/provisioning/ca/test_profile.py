"""Profiles: what may be configured, what is refused with the key's name, and which names a certificate gets."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from provisioning.ca.csr import VerifiedRequest, apply_profile, verify_csr
from provisioning.ca.name_policy import MAXIMUM_NAMES, NameRefused, SubjectNames
from provisioning.ca.profile import (
    MAXIMUM_LIFE,
    MINIMUM_LIFE,
    InvalidProfile,
    KeyType,
    Profile,
    ProfileConfig,
    ProfileName,
    profile_of,
)
from provisioning.config import ProfileSettings
from provisioning.errors import Code, Refused
from provisioning.pki.identity import Identity
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.role import Role
from tests.support.requests import csr_der
from tests.support.slow_keys import rsa_key

DEVICE = ProfileConfig("device", timedelta(days=30))
METER = Identity("fleet.internal", Role.DEVICE, "meter-17", "north")
NOTHING = SubjectNames()
TEN = ipaddress.ip_address("10.0.0.1")


def configured(**changes: object) -> Profile:
    return profile_of(replace(DEVICE, **changes))  # type: ignore[arg-type]


def names(profile: Profile, *, held: SubjectNames = NOTHING, asked: SubjectNames = NOTHING) -> SubjectNames:
    found = profile.names.names_for(METER, held, asked)
    assert profile.names.allows(METER, found)
    return found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "a/b"}, "profiles: name 'a/b': use 1 to 64 letters"),
        ({"name": "sensor"}, "profiles.sensor.role is missing: a profile that is not built in needs a role"),
        ({"name": "sensor", "role": "pump"}, "profiles.sensor.role is 'pump': choose one of device, broker"),
        ({"role": "broker"}, "profiles.device.role is 'broker': the built-in profile's is device"),
        ({"key_types": ("P-521",)}, r"profiles.device.key_types has \['P-521'\]: choose from P-256, P-384"),
        ({"key_types": ()}, "profiles.device.key_types is empty"),
        ({"minimum_rsa_bits": 1024}, "profiles.device.minimum_rsa_bits is 1024: choose 2048 to 8192"),
        ({"extended_key_usages": ("serverAuth",)}, "extended_key_usages lacks clientAuth"),
        ({"extended_key_usages": ()}, "extended_key_usages lacks clientAuth"),
        ({"extended_key_usages": ("clientAuth", "OCSPSigning")}, "extended_key_usages has 'OCSPSigning': choose"),
        ({"extended_key_usages": ("clientAuth", "2.5.29.37.0")}, "has '2.5.29.37.0': choose clientAuth"),
        ({"extended_key_usages": ("clientAuth", "1.3.6.1.5.5.7.3.28")}, "an OID of your own below 1.3.6.1.4.1"),
        ({"organization": ""}, "profiles.device.organization has 0 characters: use 1 to 64"),
        ({"organization": "a", "honoured_attributes": ("organization",)}, "leave one of them out"),
        ({"honoured_attributes": ("commonName",)}, r"honoured_attributes has \['commonName'\]: choose from country"),
        ({"dns_patterns": ("devices.example",)}, "has 'devices.example': a name for each device needs {name} in it"),
        ({"dns_patterns": ("{name}.{site}.example",)}, "dns_patterns has one that is wrong: 'x.{site}.example' is"),
        ({"dns_patterns": ("{name}.*.example",)}, "dns_patterns has one that is wrong"),
        ({"name": "service", "dns_patterns": ("{name}.{group}.x",)}, "only a device always has a group"),
        ({"dns_patterns": ("{name}-{group}.x",)}, r"ambiguous: .* does not show where \{name\} ends"),
        ({"dns_patterns": ("a.{group}{name}.x",)}, r"put a '\.' between \{group\} and \{name\}, or"),
        ({"honoured_domains": ("*.example",)}, r"honoured_domains has one that is wrong: '\*.example' is not a h"),
        (
            {"dns_patterns": ("{name}.devices.example",), "honoured_domains": ("example",)},
            "honoured_domains has 'example', where dns_patterns put other devices' names",
        ),
        ({"honoured_networks": ("10.0.0.1/8",)}, "honoured_networks has one that is wrong: 10.0.0.1/8 has host bits"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_key_and_the_remedy(changes: dict[str, object], words: str) -> None:
    with pytest.raises(InvalidProfile, match=words):
        configured(**changes)


def test_the_file_can_say_all_that_a_profile_can_be() -> None:
    assert set(ProfileSettings.model_fields) == set(ProfileConfig.__dataclass_fields__) - {"name"}


def test_a_profile_of_one_s_own_is_like_the_built_in_one_of_its_role() -> None:
    sensor = profile_of(ProfileConfig("sensor", timedelta(days=9), role="device"))
    assert replace(sensor, name="device", life=DEVICE.life) == profile_of(DEVICE)
    gateway = profile_of(ProfileConfig("gateway", timedelta(days=9), role="broker"))
    assert gateway.extended_key_usages == (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)
    assert gateway.names.granted


@pytest.mark.parametrize(
    ("key", "taken"),
    [
        (generate_key(), True),
        (ec.generate_private_key(ec.SECP384R1()), False),
        (ed25519.Ed25519PrivateKey.generate(), False),
        (rsa_key(), False),
        (rsa_key(3072), True),
    ],
    ids=["P-256", "P-384", "Ed25519", "RSA-2048", "RSA-3072"],
)
def test_a_profile_takes_the_keys_that_it_names(key: PrivateKey, taken: bool) -> None:
    profile = configured(key_types=("RSA", "P-256"), minimum_rsa_bits=3072)
    assert profile.takes(key.public_key()) is taken
    request = verify_csr(csr_der(key))
    if taken:
        assert apply_profile(request, profile, METER, NOTHING) == NOTHING
    else:
        with pytest.raises(Refused, match="does not take this kind of key: use P-256 or RSA of 3072 bits or more"):
            apply_profile(request, profile, METER, NOTHING)


def test_by_default_nothing_that_a_request_asks_for_is_honoured() -> None:
    extension = x509.SubjectAlternativeName([x509.DNSName("a.example"), x509.IPAddress(TEN), x509.RFC822Name("a@b.c")])
    request: VerifiedRequest = verify_csr(csr_der(extensions=[extension]))
    assert (request.asked.dns_names, request.asked.ip_addresses) == (("a.example",), (TEN,))
    for name in ProfileName:
        assert names(profile_of(ProfileConfig(name, DEVICE.life)), asked=request.asked) == NOTHING


def test_host_names_are_built_by_pattern() -> None:
    profile = configured(dns_patterns=("{name}.{group}.devices.example", "dev-{name}.example"))
    assert names(profile).dns_names == ("meter-17.north.devices.example", "dev-meter-17.example")


@pytest.mark.parametrize("name", ["Meter-17", "meter_17", "meter-17."], ids=repr)
def test_a_name_that_makes_no_host_name_is_refused(name: str) -> None:
    profile = configured(dns_patterns=("{name}.devices.example",))
    with pytest.raises(NameRefused, match=r"makes a host name of .* with one dot between labels$") as caught:
        profile.names.names_for(replace(METER, name=name), NOTHING, NOTHING)
    assert caught.value.code is Code.CSR_NAME


def test_a_certificate_gets_no_more_names_than_a_few_but_keeps_what_its_predecessor_has() -> None:
    """With two thousand, others waited for more than a second while they were claimed on PostgreSQL."""
    profile = configured(
        dns_patterns=("{name}.devices.example",),
        honoured_domains=("plant.example",),
        honoured_networks=(ipaddress.ip_network("10.0.0.0/8"),),
    )
    hosts = tuple(f"press-{number}.plant.example" for number in range(MAXIMUM_NAMES - 1))
    full = SubjectNames(hosts, (TEN,))
    assert names(profile, asked=full).dns_names == ("meter-17.devices.example", *hosts)
    for more in (replace(full, dns_names=(*hosts, "a.plant.example")), replace(full, ip_addresses=(TEN, TEN + 1))):
        with pytest.raises(NameRefused, match="more than 32 host names and addresses") as caught:
            profile.names.names_for(METER, NOTHING, more)
        assert caught.value.code is Code.CSR_NAME
        assert names(profile, held=more, asked=more).dns_names[1:] == more.dns_names
        with pytest.raises(NameRefused, match="ask for fewer"):
            profile.names.names_for(METER, more, replace(more, dns_names=(*more.dns_names, "b.plant.example")))


def test_host_names_below_a_domain_are_honoured_and_others_refused() -> None:
    profile = configured(honoured_domains=("plant.example",))
    asked = SubjectNames(("press-4.plant.example", "a.b.plant.example"))
    assert names(profile, asked=asked) == asked
    for wrong in ("plant.example", "xplant.example", "*.plant.example", "Press.plant.example", "broker.example"):
        with pytest.raises(NameRefused, match=r"names below plant\.example are allowed here"):
            names(profile, asked=SubjectNames((wrong,)))
    assert names(profile, asked=SubjectNames((), (TEN,))) == NOTHING  # Of addresses the profile says nothing.


def test_addresses_of_a_network_are_honoured_and_others_refused() -> None:
    profile = configured(honoured_networks=("10.0.0.0/8", "fd00::/8"))
    asked = SubjectNames((), (TEN, ipaddress.ip_address("fd00::1")))
    assert names(profile, asked=asked) == asked
    with pytest.raises(NameRefused, match=r"the address 192\.0\.2\.1: addresses in 10\.0\.0\.0/8, fd00::/8"):
        names(profile, asked=SubjectNames((), (ipaddress.ip_address("192.0.2.1"),)))


def test_subject_attributes_are_honoured_by_name_and_the_organization_is_the_profile_s() -> None:
    serial = x509.NameAttribute(NameOID.SERIAL_NUMBER, "SN-4711")
    organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Somebody Else")
    profile = configured(organization="Example Works", honoured_attributes=("serialNumber",))
    found = names(profile, asked=SubjectNames(attributes=(serial, organization)))
    assert found.attributes == (x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example Works"), serial)
    with pytest.raises(NameRefused, match="serialNumber is not 1 to 64 printable characters"):
        names(profile, asked=SubjectNames(attributes=(x509.NameAttribute(NameOID.SERIAL_NUMBER, "a\nb"),)))
    longest = x509.NameAttribute(NameOID.SERIAL_NUMBER, "1" * 64)
    assert longest in names(profile, asked=SubjectNames(attributes=(longest,))).attributes
    with pytest.raises(NameRefused, match="serialNumber is not 1 to 64 printable characters"):
        names(profile, asked=SubjectNames(attributes=(x509.NameAttribute(NameOID.SERIAL_NUMBER, "1" * 65),)))


@pytest.mark.parametrize(
    "more",
    [
        SubjectNames(("press-4.plant.example",)),
        SubjectNames((), (TEN,)),
        SubjectNames(attributes=(x509.NameAttribute(NameOID.SERIAL_NUMBER, "SN-4711"),)),
    ],
    ids=["host", "address", "attribute"],
)
def test_each_kind_of_name_is_checked_in_the_result_too(more: SubjectNames) -> None:
    """Wherever it came from: the linter asks this of every certificate before it is signed."""
    assert configured().names.allows(METER, NOTHING)
    assert not configured().names.allows(METER, more)


@pytest.mark.parametrize(
    ("life", "backdate"), [(MINIMUM_LIFE, timedelta()), (MAXIMUM_LIFE, timedelta(hours=1))], ids=["least", "most"]
)
def test_the_bounds_of_times_are_allowed_themselves(life: timedelta, backdate: timedelta) -> None:
    assert configured(life=life, backdate=backdate).life == life


def test_a_successor_keeps_what_the_profile_allows_now() -> None:
    had = SubjectNames(("press-4.plant.example", "press-4.old.example"), (TEN,))
    now = configured(honoured_domains=("plant.example",), honoured_networks=("192.0.2.0/24",))
    assert names(now, held=had, asked=had) == SubjectNames(("press-4.plant.example",))
    assert names(configured(), held=had, asked=had) == NOTHING
    broker = profile_of(ProfileConfig(ProfileName.BROKER, DEVICE.life))
    assert names(broker, held=had, asked=had) == had


def test_the_kinds_of_key_are_those_of_the_key_policy() -> None:
    assert {kind.value for kind in KeyType} == {"P-256", "P-384", "Ed25519", "RSA"}
