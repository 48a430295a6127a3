"""A precedent covers what the linter would pass, and nothing that differs from what was intended in any one byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from provisioning.ca import der
from provisioning.ca import issuer as issuing
from provisioning.ca.ceremony import Authority, found_authority
from provisioning.ca.issuer import IssuanceRefused, IssuanceRequest, Issuer, IssuerUrls
from provisioning.ca.lint import Intent, Made, lint
from provisioning.ca.name_policy import SubjectNames
from provisioning.ca.precedents import Precedents
from provisioning.ca.profile import Profile, ProfileConfig, ProfileName, profile_of
from provisioning.pki.identity import Identity, Role
from provisioning.pki.keys import PrivateKey, generate_key, spki_of
from tests.support.requests import NOON
from tests.support.slow_keys import rsa_key

URLS = IssuerUrls("http://ca.example.org/crl/ca.crl", "http://ca.example.org/ca/ca.crt", "http://ca.example.org/ocsp")
SERIAL = 1 << 126 | 5
PROFILE = profile_of(ProfileConfig(ProfileName.DEVICE, timedelta(days=30)))
METER = Identity("fleet.internal", Role.DEVICE, "meter-17", "north")
KEYS: dict[str, PrivateKey] = {
    "P-256": generate_key(),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
    "RSA": rsa_key(),
}


@pytest.fixture(scope="module")
def authority() -> Authority:
    return found_authority("fleet.internal", NOON, (SERIAL + 1, SERIAL + 2), URLS)


@pytest.fixture
def issuer(authority: Authority) -> Issuer:
    return Issuer(authority.issuing_ca.certificate, authority.issuing_ca.key, URLS)


def request(key: PrivateKey = KEYS["P-256"], **changes: object) -> IssuanceRequest:
    return replace(IssuanceRequest(METER, key.public_key(), SERIAL, NOON), **changes)  # type: ignore[arg-type]


def draft(issuer: Issuer, asked: IssuanceRequest, profile: Profile = PROFILE) -> tuple[bytes, Intent]:
    """Return the fields that *issuer* would sign for *asked*, and what they are meant to be."""
    prepared = issuer.prepare(profile, asked)
    return prepared.redeem(issuer), Intent(profile, asked.identity, issuer.certificate, asked.names, prepared.made)


@pytest.mark.parametrize("kind", ["P-256", "P-384", "Ed25519"])
@pytest.mark.parametrize("name", ["m", "meter-18", "m" * 64])
def test_the_next_of_its_kind_is_covered(issuer: Issuer, kind: str, name: str) -> None:
    precedents = Precedents(issuer.certificate.not_valid_after_utc)
    fields, intent = draft(issuer, request(KEYS[kind]))
    assert not precedents.cover(fields, intent)
    precedents.remember(fields, PROFILE)
    assert precedents.cover(fields, intent)
    identity = Identity("fleet.internal", Role.DEVICE, name, "g" * 64 if len(name) > 1 else "g")
    other = request(KEYS[kind], identity=identity, serial=(1 << 127) - 9, now=NOON + timedelta(days=3, seconds=7))
    assert precedents.cover(*draft(issuer, other))


def test_what_is_of_another_kind_is_not_covered(authority: Authority, issuer: Issuer) -> None:
    precedents = Precedents(issuer.certificate.not_valid_after_utc)
    fields, intent = draft(issuer, request())
    precedents.remember(fields, PROFILE)
    same = profile_of(ProfileConfig(ProfileName.DEVICE, timedelta(days=30)))
    assert not precedents.cover(fields, replace(intent, profile=same))  # Another one, whatever it says.
    without = Issuer(authority.issuing_ca.certificate, authority.issuing_ca.key)
    assert not precedents.cover(*draft(without, request()))
    assert not precedents.cover(*draft(issuer, request(crl_url="http://ca.example.org/crl/1.crl")))
    assert not precedents.cover(*draft(issuer, request(KEYS["P-384"])))
    assert not precedents.cover(*draft(issuer, request(KEYS["RSA"])))
    assert not precedents.cover(fields, replace(intent, names=SubjectNames(("meter-17.example.org",))))
    assert not precedents.cover(fields, replace(intent, made=None))


@pytest.mark.parametrize(
    "change",
    [
        lambda made: replace(made, serial=made.serial + 1),
        lambda made: replace(made, not_before=made.not_before + timedelta(seconds=1)),
        lambda made: replace(made, not_after=made.not_after - timedelta(seconds=1)),
        lambda made: replace(made, spki=spki_of(generate_key().public_key())),
    ],
    ids=["serial", "not before", "not after", "key"],
)
def test_neither_of_the_two_takes_what_was_not_chosen(issuer: Issuer, change: Callable[[Made], Made]) -> None:
    precedents = Precedents(issuer.certificate.not_valid_after_utc)
    fields, intent = draft(issuer, request())
    precedents.remember(fields, PROFILE)
    assert intent.made is not None
    wrong = replace(intent, made=change(intent.made))
    assert not precedents.cover(fields, wrong)
    certificate = issuer.issue(issuer.prepare(PROFILE, request()))
    assert lint(certificate, intent) == []
    assert lint(certificate, wrong) == ["serial number, dates or key are not those that were chosen"]


@pytest.mark.parametrize(
    "change",
    [
        {"identity": Identity("fleet.internal", Role.DEVICE, "meter-18", "north")},
        {"identity": Identity("fleet.internal", Role.DEVICE, "meter-17", "south")},
        {"identity": Identity("fleet.internal", Role.OPERATOR, "meter-17", "north")},
    ],
    ids=["name", "group", "role"],
)
def test_somebody_else_is_not_covered(issuer: Issuer, change: dict[str, Identity]) -> None:
    precedents = Precedents(issuer.certificate.not_valid_after_utc)
    fields, intent = draft(issuer, request())
    precedents.remember(fields, PROFILE)
    assert not precedents.cover(fields, replace(intent, **change))  # type: ignore[arg-type]


def test_a_life_beyond_profile_or_issuer_is_not_covered(issuer: Issuer) -> None:
    fields, intent = draft(issuer, request())
    shorter = profile_of(ProfileConfig(ProfileName.DEVICE, timedelta(days=29)))
    precedents = Precedents(issuer.certificate.not_valid_after_utc)
    precedents.remember(fields, shorter)
    assert not precedents.cover(fields, replace(intent, profile=shorter))
    early = Precedents(NOON + timedelta(days=29))
    early.remember(fields, PROFILE)
    assert not early.cover(fields, intent)


@pytest.mark.parametrize("serial", [7, 1 << 160])
def test_a_serial_number_out_of_bounds_is_not_covered(issuer: Issuer, serial: int) -> None:
    issuer.issue(issuer.prepare(PROFILE, request()))
    with pytest.raises(IssuanceRefused, match="serial number has"):
        issuer.prepare(PROFILE, request(serial=serial))


@pytest.mark.parametrize("kind", ["P-256", "Ed25519"])
def test_a_draft_that_differs_in_one_byte_is_covered_by_nothing(issuer: Issuer, kind: str) -> None:
    precedents = Precedents(issuer.certificate.not_valid_after_utc)
    fields, intent = draft(issuer, request(KEYS[kind]))
    precedents.remember(fields, PROFILE)
    for place, octet in enumerate(fields):
        for other in {octet ^ 1, octet ^ 0x80, 0, 0xFF, (octet + 1) % 256} - {octet}:
            changed = fields[:place] + bytes((other,)) + fields[place + 1 :]
            assert not precedents.cover(changed, intent), (place, other)


def test_a_length_that_is_not_written_as_der_writes_it_is_covered_by_nothing(issuer: Issuer) -> None:
    precedents = Precedents(issuer.certificate.not_valid_after_utc)
    fields, intent = draft(issuer, request())
    precedents.remember(fields, PROFILE)

    def again(names: Callable[[bytes], bytes]) -> bytes:
        *before, extensions = der.children(fields)
        (inside,) = der.children(extensions)
        each = [names(every) if every[4:7] == b"\x55\x1d\x11" else every for every in der.children(inside)]
        whole = der.element(b"\xa3", der.element(der.SEQUENCE, b"".join(each)))
        return der.element(der.SEQUENCE, b"".join(before) + whole)

    assert again(lambda names: names) == fields
    assert not precedents.cover(again(lambda names: names[:1] + b"\x81" + names[1:]), intent)


@pytest.mark.parametrize("cut", [1, 2, 10, 200])
def test_a_draft_that_is_cut_off_or_goes_on_is_covered_by_nothing(issuer: Issuer, cut: int) -> None:
    precedents = Precedents(issuer.certificate.not_valid_after_utc)
    fields, intent = draft(issuer, request())
    precedents.remember(fields, PROFILE)
    assert not precedents.cover(fields[:-cut], intent)
    assert not precedents.cover(fields + bytes(cut), intent)
    assert not precedents.cover(b"", intent)


def test_the_issuer_asks_the_linter_once_for_each_kind(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noting(certificate: x509.Certificate, intent: Intent) -> list[str]:
        asked.append(intent.identity.name)
        return lint(certificate, intent)

    monkeypatch.setattr(issuing, "lint", noting)
    for number in range(5):
        for kind in ("P-256", "P-384"):
            identity = Identity("fleet.internal", Role.DEVICE, f"{kind}-{number}", "north")
            issuer.prepare(PROFILE, request(KEYS[kind], identity=identity, serial=SERIAL + number))
    assert asked == ["P-256-0", "P-384-0"]


def test_what_the_linter_finds_wrong_is_no_precedent(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuing, "lint", lambda *_: ["something"])
    for _ in range(2):
        with pytest.raises(IssuanceRefused, match="something"):
            issuer.prepare(PROFILE, request())


def test_precedents_are_bounded(issuer: Issuer) -> None:
    precedents = Precedents(issuer.certificate.not_valid_after_utc)
    for number in range(300):
        fields, _ = draft(issuer, request(crl_url=f"http://ca.example.org/crl/{number}.crl"))
        precedents.remember(fields, PROFILE)
    assert 0 < len(precedents) <= 256
