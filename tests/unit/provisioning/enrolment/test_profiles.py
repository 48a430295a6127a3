"""Configured profiles at work: what a request gets, and what it gets again when the profile has changed."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from provisioning.authorities.issuing_policy import profiles_of
from provisioning.ca.profile import ProfileConfig, profile_of
from provisioning.config import load_settings
from provisioning.enrolment.attempt import Question, TokenCredential, Verdict
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, ConfigurationError, Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.store.groups import Group
from tests.support.fleet import open_fleet, successor_csr
from tests.support.requests import csr_der
from tests.support.slow_keys import rsa_key
from tests.support.ways import claim

LIFE = timedelta(days=7)
EC_ONLY = ProfileConfig("device", LIFE, key_types=("P-256", "Ed25519"))
PLANT = ProfileConfig("device", LIFE, honoured_domains=("plant.example",), dns_patterns=("{name}.dev.example",))


def hosts(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return found.get_values_for_type(x509.DNSName)


def asking(*names: str) -> bytes:
    return csr_der(extensions=[x509.SubjectAlternativeName([x509.DNSName(name) for name in names])])


async def test_what_the_profile_honours_is_in_the_certificate_and_in_its_successor(store_url: str) -> None:
    async with open_fleet(store_url, configured=[PLANT]) as fleet:
        certificate = await fleet.enrol(csr=asking("press.plant.example"))
        assert hosts(certificate) == ["meter-17.dev.example", "press.plant.example"]
        assert certificate.not_valid_after_utc == fleet.clock() + LIFE
        assert hosts(await fleet.reenrol(certificate, successor_csr(certificate))) == hosts(certificate)


async def test_a_name_that_is_not_honoured_is_refused_and_spends_nothing(store_url: str) -> None:
    async with open_fleet(store_url, configured=[PLANT]) as fleet:
        with pytest.raises(Refused, match=r"names below plant\.example") as caught:
            await fleet.enrol(csr=asking("broker.example"))
        assert caught.value.code is Code.CSR_NAME
        await fleet.enrol()


async def test_a_changed_profile_locks_nobody_out(store_url: str, tmp_path: Path) -> None:
    async with open_fleet(store_url, configured=[PLANT]) as fleet:
        certificate = await fleet.enrol(csr=asking("press.plant.example"))
        service = fleet.enrolment.service
        service._profiles = service._profiles | profiles_of(load_settings(tmp_path))  # type: ignore[operator]
        renewed = await fleet.reenrol(certificate, successor_csr(certificate))
        assert hosts(renewed) == []


@pytest.mark.parametrize("role", [None, "service"], ids=["gone", "another role's"])
async def test_a_group_s_profile_is_a_device_s_when_it_signs_too(store_url: str, role: str | None) -> None:
    async with open_fleet(store_url, configured=[ProfileConfig("plant", LIFE, role="device")]) as fleet:
        await fleet.groups.create(Group("north", profile="plant"), by="admin")
        await fleet.enrol("meter-1")
        service = fleet.enrolment.service
        changed = {"plant": profile_of(ProfileConfig("plant", LIFE, role=role))} if role else {}
        service._profiles = {name: each for name, each in service._profiles.items() if name != "plant"} | changed
        with pytest.raises(Refused, match="UNAVAILABLE: group north has a profile that is not configured"):
            await fleet.enrol()


@pytest.mark.parametrize("way", ["token", "token+webhook"])
@pytest.mark.parametrize("label", ["north", None])
async def test_a_key_that_is_made_is_of_the_kind_of_its_group_s_profile(
    store_url: str, label: str | None, way: str
) -> None:
    """Also where the token alone says which group that is, and whatever key has signed the request."""
    configured = ProfileConfig("plant", LIFE, role="device", key_types=("Ed25519",))
    rules = Group("north", parse_ways([way]), profile="plant", server_keys=True, webhook_url="http://127.0.0.1:1/")

    async def allow(question: Question) -> Verdict:
        return Verdict(question, allowed=True)

    async with open_fleet(store_url, configured=[configured]) as fleet:
        fleet.enrolment.service._ask = allow
        await fleet.groups.create(rules, by="admin")
        token = TokenCredential("meter-17", await fleet.token())
        made = await fleet.enrolment.enrol_with_server_key(csr_der(), token, label)
        assert isinstance(made.key, ed25519.Ed25519PrivateKey)


async def test_a_key_that_the_profile_does_not_take_is_refused_with_those_that_it_takes(store_url: str) -> None:
    async with open_fleet(store_url, configured=[EC_ONLY]) as fleet:
        with pytest.raises(Refused, match="use P-256 or Ed25519") as caught:
            await fleet.enrol(csr=csr_der(rsa_key()))
        assert caught.value.code is Code.CSR_KEY


FILE = """
device_life = "P14D"

[profiles.device]
key_types = ["P-256"]
organization = "Example Works"
ocsp_url = false

[profiles.sensor]
role = "device"
life = "P90D"

[profiles.gateway]
role = "broker"
"""


def test_the_file_changes_built_in_profiles_and_adds_others(tmp_path: Path) -> None:
    (tmp_path / "provisioning.toml").write_text(FILE)
    profiles = profiles_of(load_settings(tmp_path))
    assert set(profiles) == {"device", "broker", "service", "operator", "provisioning", "sensor", "gateway"}
    device = profiles["device"]
    assert (device.life, device.keys_taken, device.ocsp_url) == (timedelta(days=14), "P-256", False)
    assert device.names.organization == "Example Works"
    assert (profiles["sensor"].life, profiles["sensor"].names.organization) == (timedelta(days=90), None)
    assert profiles["gateway"].life == profiles["broker"].life == timedelta(days=30)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[profiles.device]\nlives = 3", r"profiles\.device\.lives: no such setting; is life meant"),
        ("[profiles.device]\nlife = 'a month'", r"profiles\.device\.life: write a duration"),
        ("[profiles.device]\nlife = 'P900D'", r"configuration: profiles\.device\.life is 900 days.*to 825 days"),
        ("[profiles.sensor]", r"configuration: profiles\.sensor\.role is missing"),
        ("device_life = 'P1D'\n[profiles.device]\nlife = 'P2D'", "device.life and device_life are both set: leave one"),
    ],
    ids=["unknown key", "no duration", "too long", "no role", "said twice"],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "provisioning.toml").write_text(text)
    with pytest.raises(ConfigurationError, match=words):
        profiles_of(load_settings(tmp_path))


async def test_an_attribute_of_the_subject_is_kept_by_the_successor(store_url: str) -> None:
    serial = x509.NameAttribute(NameOID.SERIAL_NUMBER, "SN-4711")
    config = ProfileConfig("device", LIFE, organization="Example Works", honoured_attributes=("serialNumber",))
    async with open_fleet(store_url, configured=[config]) as fleet:
        certificate = await fleet.enrol(csr=csr_der(attributes=[serial]))
        assert certificate.subject.rfc4514_string() == "CN=meter-17,2.5.4.5=SN-4711,O=Example Works"
        renewed = await fleet.reenrol(certificate, successor_csr(certificate))
        assert renewed.subject == certificate.subject


@pytest.mark.filterwarnings("ignore:Attribute's length must be")
@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ((NameOID.SERIAL_NUMBER, "SN_4711"), "serialNumber is 'SN_4711'"),
        ((NameOID.SERIAL_NUMBER, "Ger\u00e4t-7"), "serialNumber is 'Ger\u00e4t-7'"),
        ((NameOID.COUNTRY_NAME, "DEU"), "country is 'DEU'"),
        ((NameOID.COUNTRY_NAME, "D@"), "country is 'D@'"),
    ],
    ids=["underscore", "umlaut", "three letters", "no letter"],
)
async def test_what_the_standard_has_no_room_for_in_an_attribute_is_refused_and_spends_nothing(
    store_url: str, attribute: tuple[x509.ObjectIdentifier, str], words: str
) -> None:
    """Go and this library write such a serialNumber as UTF8String, where RFC 5280 has a PrintableString only."""
    asked = x509.NameAttribute(*attribute, _ASN1Type.UTF8String, _validate=False)
    config = ProfileConfig("device", LIFE, honoured_attributes=("serialNumber", "country"))
    async with open_fleet(store_url, configured=[config]) as fleet:
        with pytest.raises(Refused, match=f"the subject's {words}: use ") as caught:
            await fleet.enrol(csr=csr_der(attributes=[asked]))
        assert caught.value.code is Code.CSR_NAME
        good = [
            x509.NameAttribute(NameOID.SERIAL_NUMBER, "SN 4711/a=b?:+,.()'-"),
            *([x509.NameAttribute(NameOID.COUNTRY_NAME, "DE")]),
        ]
        certificate = await fleet.enrol(csr=csr_der(attributes=good))
        assert set(good) <= set(certificate.subject)


async def test_a_name_that_could_give_another_device_its_host_name_is_refused(store_url: str) -> None:
    profile = ProfileConfig("device", LIFE, dns_patterns=("{name}.{group}.dev.example",))
    async with open_fleet(store_url, configured=[profile]) as fleet:
        token = await fleet.token("a", "b.c")
        assert hosts(await fleet.enrolment.enrol(csr_der(names=["a"]), TokenCredential("a", token))) == [
            "a.b.c.dev.example"
        ]
        await fleet.groups.create(Group("c", ways=parse_ways(["claim"]), profile="device"), by="admin")
        shared = await claim(fleet, group_name="c")
        ambiguous = r"the name 'a\.b' could give two devices one host name: use a name"
        with pytest.raises(Refused, match=ambiguous) as caught:
            await fleet.enrolment.enrol(csr_der(names=["a.b"]), None, certificate=shared)
        assert caught.value.code is Code.CSR_NAME
        # A token that would be of no use is not made.
        for name, group, words in (
            ("a.b", "d", ambiguous),
            ("A", "d", "'A.d.dev.example' is not a host name"),
            (None, "d_1", "'x.d_1.dev.example' is not a host name"),
        ):
            devices = [] if name is None else [name]
            with pytest.raises(Refused, match=f"a token could not be used: .*{words}"):
                await fleet.token_service.create(TokenOrder(devices, group), by="admin")
        assert await fleet.token_service.create(TokenOrder([], "d.e"), by="admin")


async def test_no_token_is_made_for_a_host_name_of_another(store_url: str) -> None:
    async with open_fleet(store_url, configured=[PLANT]) as fleet:
        await fleet.enrol(csr=asking("hub.plant.example"))
        for host in ("hub.plant.example", "meter-17.dev.example"):
            order = TokenOrder(["broker-1"], None, Role.BROKER, dns_names=[host])
            with pytest.raises(Refused, match=f"the host name '{host}' is that of device meter-17") as caught:
                await fleet.token_service.create(order, by="admin")
            assert caught.value.code is Code.CSR_NAME
        await fleet.revocation.revoke_device("meter-17", RevocationReason.SUPERSEDED, by="admin")
        for name in ("broker-1", "broker-2"):
            order = TokenOrder([name], None, Role.BROKER, dns_names=["hub.plant.example"])
            assert await fleet.token_service.create(order, by="admin")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            'device]\ndns_patterns = ["{name}.x", "{name}.{group}.x"]',
            r"device.dns_patterns has '{name}.x' and profiles.device.dns_patterns '{name}.{group}.x': two devices",
        ),
        (
            'device]\ndns_patterns = ["{name}.x"]\n[profiles.cell]\nrole = "device"\ndns_patterns = ["dev-{name}.x"]',
            r"give each pattern a domain of its own",
        ),
        (
            'device]\ndns_patterns = ["{name}.a.x"]\n[profiles.cell]\nrole = "device"\nhonoured_domains = ["a.x"]',
            r"profiles.cell.honoured_domains has 'a.x', where profiles.device.dns_patterns put other devices' names",
        ),
        (
            (
                'device]\ndns_patterns = ["{name}.{group}.x"]\n[profiles.cell]\nrole = "device"\n'
                'honoured_domains = ["north.x"]'
            ),  # Of press of group north, and of whoever asks for it.
            r"profiles.cell.honoured_domains has 'north.x', where profiles.device.dns_patterns put other devices'",
        ),
        (
            'device]\ndns_patterns = ["dev-{name}"]\nhonoured_domains = ["y.x"]',
            r"profiles.device.honoured_domains has 'y.x', where profiles.device.dns_patterns put other devices' names",
        ),
    ],
    ids=["of one profile", "of two", "honoured by another", "honoured below another's", "with an open end"],
)
def test_profiles_that_could_give_two_devices_one_host_name_are_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "provisioning.toml").write_text(f"[profiles.{text}\n")
    with pytest.raises(ConfigurationError, match=words):
        profiles_of(load_settings(tmp_path))


def test_profiles_may_have_the_same_pattern_or_patterns_that_differ_at_an_end(tmp_path: Path) -> None:
    (tmp_path / "provisioning.toml").write_text(
        """
        [profiles.device]
        dns_patterns = ["{name}.a.x", "d-{name}.b.x"]
        [profiles.cell]
        role = "device"
        dns_patterns = ["{name}.a.x", "c-{name}.b.x"]
        """
    )
    assert len(profiles_of(load_settings(tmp_path))["cell"].names.dns_patterns) == 2
