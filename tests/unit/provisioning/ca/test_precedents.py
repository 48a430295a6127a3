"""A precedent covers what the linter would pass, and nothing that differs from what was intended in any one byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519

from provisioning.ca import der
from provisioning.ca import issuer as issuing
from provisioning.ca import precedents as precedents_module
from provisioning.ca.ceremony import Authority, found_authority
from provisioning.ca.fields import key_identifier, only_uri
from provisioning.ca.issuer import IssuanceRefused, IssuanceRequest, Issuer, IssuerUrls
from provisioning.ca.lint import Intent, Made, lint
from provisioning.ca.name_policy import SubjectNames
from provisioning.ca.precedents import Precedents
from provisioning.ca.profile import Profile, ProfileConfig, ProfileName, profile_of
from provisioning.ca.signing import signature_algorithm, signer, with_signature
from provisioning.pki.identity import Identity
from provisioning.pki.keys import PrivateKey, generate_key, spki_of
from provisioning.pki.role import Role
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


def taught(issuer: Issuer, fields: bytes, intent: Intent, ends: datetime | None = None) -> Precedents:
    """Return precedents that know *fields*, and where the parts are in drafts like it: both are asked then."""
    precedents = Precedents(ends or issuer.certificate.not_valid_after_utc)
    precedents.remember(fields, intent.profile)
    assert precedents.cover(fields, intent)
    return precedents


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
    fields, intent = draft(issuer, request())
    precedents = taught(issuer, fields, intent)
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
    fields, intent = draft(issuer, request())
    precedents = taught(issuer, fields, intent)
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
    fields, intent = draft(issuer, request())
    precedents = taught(issuer, fields, intent)
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
    fields, intent = draft(issuer, request(KEYS[kind]))
    precedents = taught(issuer, fields, intent)
    for place, octet in enumerate(fields):
        for other in {octet ^ 1, octet ^ 0x80, 0, 0xFF, (octet + 1) % 256} - {octet}:
            changed = fields[:place] + bytes((other,)) + fields[place + 1 :]
            assert not precedents.cover(changed, intent), (place, other)


class Parts:
    """The parts of a draft: any may be put in the place of its own."""

    def __init__(self, fields: bytes) -> None:
        self.version, self.serial, *self.issuing, self.validity, self.subject, self.spki, last = der.children(fields)
        (inside,) = der.children(last)
        self.extensions = list(der.children(inside))

    def place_of(self, identifier: int) -> int:
        """Return which of the extensions has the object identifier 2.5.29.*identifier*."""
        return next(at for at, each in enumerate(self.extensions) if each[2:7] == bytes((6, 3, 0x55, 0x1D, identifier)))

    def whole(self) -> bytes:
        extensions = der.element(b"\xa3", der.element(der.SEQUENCE, b"".join(self.extensions)))
        parts = (self.version, self.serial, *self.issuing, self.validity, self.subject, self.spki, extensions)
        return der.element(der.SEQUENCE, b"".join(parts))


KEY_IDENTIFIER, ALTERNATIVE_NAME = 14, 17


def utc_times(*texts: bytes) -> bytes:
    return der.element(der.SEQUENCE, b"".join(der.element(b"\x17", text) for text in texts))


def of_an_operator(parts: Parts, intent: Intent, made: Made) -> Intent:
    operator = replace(METER, role=Role.OPERATOR)
    parts.extensions[parts.place_of(ALTERNATIVE_NAME)] = only_uri(operator.uri)
    return replace(intent, identity=operator, made=made)


def without_life(parts: Parts, intent: Intent, made: Made) -> Intent:
    parts.validity = der.element(der.SEQUENCE, der.time(made.not_before) * 2)
    return replace(intent, made=replace(made, not_after=made.not_before))


def from_1955(parts: Parts, intent: Intent, made: Made) -> Intent:
    """RFC 5280 §4.1.2.5.1: from 50 on, UTCTime is of the last century."""
    parts.validity = utc_times(b"550301120000Z", b"550302120000Z")
    begin = datetime(2055, 3, 1, 12, tzinfo=UTC)
    return replace(intent, made=replace(made, not_before=begin, not_after=begin + timedelta(days=1)))


def with_a_sign(parts: Parts, intent: Intent, made: Made) -> Intent:
    parts.validity = utc_times(b"+50301120000Z", b"050302120000Z")
    begin = datetime(2005, 3, 1, 12, tzinfo=UTC)
    return replace(intent, made=replace(made, not_before=begin, not_after=begin + timedelta(days=1)))


def with_a_key_that_cannot_sign(parts: Parts, intent: Intent, made: Made) -> Intent:
    """As long as one of Ed25519, and of another algorithm."""
    parts.spki = spki_of(x25519.X25519PrivateKey.generate().public_key())
    parts.extensions[parts.place_of(KEY_IDENTIFIER)] = key_identifier(parts.spki)
    return replace(intent, made=replace(made, spki=parts.spki))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("P-256", of_an_operator),
        ("P-256", without_life),
        ("P-256", from_1955),
        ("P-256", with_a_sign),
        ("Ed25519", with_a_key_that_cannot_sign),
    ],
)
def test_what_is_as_it_was_meant_and_wrong_all_the_same_is_not_covered(
    authority: Authority, issuer: Issuer, kind: str, change: Callable[[Parts, Intent, Made], Intent]
) -> None:
    fields, intent = draft(issuer, request(KEYS[kind]))
    precedents = taught(issuer, fields, intent, datetime(2060, 1, 1, tzinfo=UTC))
    parts = Parts(fields)
    assert parts.whole() == fields
    assert intent.made is not None
    meant = change(parts, intent, intent.made)
    assert not precedents.cover(parts.whole(), meant)
    key = authority.issuing_ca.key
    algorithm = signature_algorithm(key)
    try:
        found = lint(x509.load_der_x509_certificate(with_signature(parts.whole(), algorithm, signer(key)(b""))), meant)
    except ValueError as unreadable:
        found = [str(unreadable)]
    assert found, "the slow twin takes it no more than this one"


@pytest.mark.parametrize("identifier", [KEY_IDENTIFIER, ALTERNATIVE_NAME])
def test_extensions_in_another_order_are_another_kind(issuer: Issuer, identifier: int) -> None:
    fields, intent = draft(issuer, request())
    precedents = taught(issuer, fields, intent)
    parts = Parts(fields)
    place = parts.place_of(identifier)
    parts.extensions.insert(0 if place else 1, parts.extensions.pop(place))
    assert not precedents.cover(parts.whole(), intent)


@pytest.mark.parametrize("identifier", [KEY_IDENTIFIER, ALTERNATIVE_NAME])
def test_what_is_there_twice_is_read_by_nobody(issuer: Issuer, identifier: int) -> None:
    fields, intent = draft(issuer, request())
    precedents = taught(issuer, fields, intent)
    parts = Parts(fields)
    place = parts.place_of(identifier)
    parts.extensions.insert(place, parts.extensions[place])
    assert not precedents.cover(parts.whole(), intent)
    precedents.remember(parts.whole(), PROFILE)
    assert len(precedents) == 1
    assert not precedents.cover(parts.whole(), intent)


def test_a_draft_with_a_field_more_or_less_is_covered_by_nothing(issuer: Issuer) -> None:
    fields, intent = draft(issuer, request())
    precedents = taught(issuer, fields, intent)
    each = list(der.children(fields))
    unique_identifier = der.element(b"\x81", b"\x00\x01")  # RFC 5280 §4.1.2.8, between key and extensions.
    for others in (*(each[:at] + each[at + 1 :] for at in range(8)), [*each[:7], unique_identifier, each[7]]):
        changed = der.element(der.SEQUENCE, b"".join(others))
        assert not precedents.cover(changed, intent)
        precedents.remember(changed, PROFILE)
    assert len(precedents) == 1


def test_who_lives_as_long_as_his_issuer_is_covered(issuer: Issuer) -> None:
    end = issuer.certificate.not_valid_after_utc
    precedents = Precedents(end)
    fields, _ = draft(issuer, request())
    precedents.remember(fields, PROFILE)
    fields, intent = draft(issuer, request(now=end - timedelta(days=1)))
    assert intent.made is not None
    assert intent.made.not_after == end
    assert precedents.cover(fields, intent)


def test_the_last_day_that_has_two_digits_for_its_year_is_read(issuer: Issuer) -> None:
    fields, intent = draft(issuer, request())
    precedents = taught(issuer, fields, intent, datetime(2060, 1, 1, tzinfo=UTC))
    parts = Parts(fields)
    begin, end = datetime(2049, 12, 31, tzinfo=UTC), datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)
    parts.validity = utc_times(b"491231000000Z", b"491231235959Z")
    assert intent.made is not None
    assert precedents.cover(parts.whole(), replace(intent, made=replace(intent.made, not_before=begin, not_after=end)))


def test_a_length_that_is_not_written_as_der_writes_it_is_covered_by_nothing(issuer: Issuer) -> None:
    fields, intent = draft(issuer, request())
    precedents = taught(issuer, fields, intent)
    parts = Parts(fields)
    place = parts.place_of(ALTERNATIVE_NAME)
    names = parts.extensions[place]
    parts.extensions[place] = names[:1] + b"\x81" + names[1:]
    assert not precedents.cover(parts.whole(), intent)


@pytest.mark.parametrize("cut", [1, 2, 10, 200])
def test_a_draft_that_is_cut_off_or_goes_on_is_covered_by_nothing(issuer: Issuer, cut: int) -> None:
    fields, intent = draft(issuer, request())
    precedents = taught(issuer, fields, intent)
    assert not precedents.cover(fields[:-cut], intent)
    assert not precedents.cover(fields + bytes(cut), intent)
    assert not precedents.cover(b"", intent)


def test_a_draft_is_parsed_once_for_its_lengths(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (f"http://ca.example.org/crl/{number}.crl" for number in (1, 2))
    other = request(
        generate_key(),
        identity=Identity("fleet.internal", Role.DEVICE, "meter-18", "south"),
        serial=SERIAL + 9,
        now=NOON + timedelta(days=2),
        crl_url=second,
    )
    longer = Identity("fleet.internal", Role.DEVICE, "meter-180", "south")
    drafts = [request(crl_url=first), request(crl_url=second), other, replace(other, identity=longer)]
    given = [draft(issuer, each) for each in drafts]
    precedents = taught(issuer, *given[0])
    precedents.remember(given[1][0], PROFILE)
    parsed: list[bytes] = []
    read = precedents_module._read

    def noting(fields: bytes) -> object:
        parsed.append(fields)
        return read(fields)

    monkeypatch.setattr(precedents_module, "_read", noting)
    assert all(precedents.cover(*each) for each in given)
    assert parsed == [given[1][0], given[3][0]], "that of another CRL shard, and that with a longer name"
    assert all(precedents.cover(*each) for each in given)
    assert len(parsed) == len(set(parsed)), "none twice"


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


def test_precedents_are_bounded(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precedents_module, "_MOST", 6)
    precedents = Precedents(issuer.certificate.not_valid_after_utc)
    for number in range(1, 10):
        identity = Identity("fleet.internal", Role.DEVICE, "m" * number, "north")
        for shard in range(8 if number == 1 else 1):
            url = f"http://ca.example.org/crl/{number}{shard}.crl"
            fields, intent = draft(issuer, request(identity=identity, crl_url=url))
            precedents.remember(fields, PROFILE)
            assert precedents.cover(fields, intent)
            assert 0 < len(precedents) <= 6
            assert 0 < len(precedents._forms) <= 6
            assert all(0 < len(form.known) <= 6 for form in precedents._forms.values())
