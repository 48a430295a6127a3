"""A CRL as a relying party reads it: what is understood, what is refused and by which code, and what it says."""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import re
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from device_sim.attack.der import content, element, elements
from provisioning.pki import crl as crl_reading
from provisioning.pki.crl import CrlProblem, CrlRefused, Scope, distribution_points, parse, read_entries, split, verify
from provisioning.pki.revocation import RevocationIndex, unpack
from provisioning.pki.revocation_reason import RevocationReason
from tests.fuzz.der import signed_by
from tests.support.crl import crl, impostor_of, pem, scope
from tests.support.panic import panic
from tests.support.pki import shared_device, shared_pki

PKI = shared_pki()
CA = PKI.issuing
HOLD = x509.ReasonFlags.certificate_hold
REMOVE = x509.ReasonFlags.remove_from_crl
URL = "http://pki.example/shard-1.crl"
STRANGE = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00")
LARGE = x509.UnrecognizedExtension(STRANGE.oid, b"\x04\x82\xff\xff" + bytes(65535))
"""More than a list has besides its entries, and than an entry has."""
LIST = crl(CA, {7: None})


ECDSA_WITH_SHA256 = bytes.fromhex("06082a8648ce3d040302")
UNKNOWN_ALGORITHM = bytes.fromhex("06082a8648ce3d04030f")


def never_pauses() -> None:
    pass


def refusal(der: bytes) -> CrlProblem:
    with pytest.raises(CrlRefused) as caught:
        check(der)
    return caught.value.code


def check(der: bytes) -> None:
    for each in split(der):
        listed = parse(each)
        verify(listed, CA.certificate)
        read_entries(listed, never_pauses)


def without_next_update(der: bytes) -> bytes:
    """Return the list *der* without its nextUpdate (RFC 5280 §5.1)."""
    signed, *rest = elements(content(der))
    version, algorithm, issuer, this_update, _, *others = elements(content(signed))
    return element(0x30, element(0x30, b"".join([version, algorithm, issuer, this_update, *others])) + b"".join(rest))


def test_a_list_whose_entries_are_in_two_parts_is_none() -> None:
    """Only the first of them would count, and whom the second names would get in."""
    signed = elements(content(LIST))[0]
    version, algorithm, issuer, this_update, next_update, entries, *others = elements(content(signed))
    for other in (entries, element(0x30, b"")):
        twice = b"".join([version, algorithm, issuer, this_update, next_update, entries, other, *others])
        assert refusal(signed_by(element(0x30, twice), CA.key)) is CrlProblem.CRL_MALFORMED


def test_a_list_is_read_with_its_reasons() -> None:
    listed = parse(crl(CA, {7: x509.ReasonFlags.key_compromise, 8: None, 9: HOLD}, number=5))
    verify(listed, CA.certificate)
    assert (listed.number, listed.base_number, listed.scope) == (5, None, Scope())
    index = RevocationIndex()
    index.publish(b"ca", "list", read_entries(listed, never_pauses))
    found = {serial: index.find((b"ca", serial)) for serial in (6, 7, 8, 9)}
    assert found[6] is None
    reasons = {serial: each.reason for serial, each in found.items() if each is not None}
    assert reasons == {
        7: RevocationReason.KEY_COMPROMISE,
        8: RevocationReason.UNSPECIFIED,
        9: RevocationReason.CERTIFICATE_HOLD,
    }
    assert index.find((b"another ca", 7)) is None
    assert len(index) == 3


def test_a_delta_changes_what_the_complete_list_says() -> None:
    delta = parse(crl(CA, {8: REMOVE, 9: HOLD}, number=6, base=5))
    assert delta.base_number == 5
    before = read_entries(parse(crl(CA, {7: None, 8: HOLD})), never_pauses)
    assert read_entries(delta, never_pauses, before).keys() == {7, 9}
    assert before.keys() == {7, 8}, "the complete list is not changed"


def test_pem_holds_any_number_of_lists_and_other_things() -> None:
    bundle = PKI.anchors.encode() + pem(crl(CA), crl(PKI.root))
    assert [parse(der).issuer for der in split(bundle)] == [CA.certificate.subject, PKI.root.certificate.subject]


_PARTS = [b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----", b"-----BEGIN", b"\n", b"-", b" !", b"M" * 7, b"QUJD"]
"""Without padding: what follows that is left out where everything is read at once."""
_WHOLE = re.compile(rb"-----BEGIN X509 CRL-----(.*?)-----END X509 CRL-----", re.DOTALL)


def split_at_once(content: bytes) -> list[bytes] | None:
    """Return what `split` does, in the simplest way; None if it refuses."""
    try:
        return [base64.b64decode(body) for body in _WHOLE.findall(content)] or None
    except binascii.Error:
        return None


def split_in_pieces(content: bytes) -> list[bytes] | None:
    try:
        return split(content)
    except CrlRefused:
        return None


@given(st.lists(st.sampled_from(_PARTS), max_size=40).map(b"".join), st.integers(1, 30))
def test_pem_is_read_in_pieces_as_it_is_at_once(content: bytes, piece: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crl_reading, "_PIECE", piece)
        found = split_in_pieces(content)
    assert found == split_at_once(content)


def test_a_long_list_in_pem_lets_others_run() -> None:
    text = pem(crl(CA, dict.fromkeys(range(1, 40_001))))
    pauses: list[int] = []
    (der,) = split(text, lambda: pauses.append(1))
    assert pem(der) == text
    assert len(pauses) >= 2 * (len(text) // (256 * 1024))


def test_a_list_without_entries_is_a_list() -> None:
    assert read_entries(parse(crl(CA)), never_pauses) == {}


def test_a_long_list_lets_others_run_and_is_read_to_its_end() -> None:
    pauses: list[int] = []
    reasons = {serial: HOLD if serial % 3 else None for serial in range(1, 2001)}
    listed = crl(CA, reasons)
    entries = read_entries(parse(listed), lambda: pauses.append(1))
    assert len(pauses) == 4
    whole = {each.serial_number: each for each in x509.load_der_x509_crl(listed)}
    assert list(entries) == list(whole)
    for serial, packed in entries.items():
        said = unpack((b"", serial), packed)
        assert said.revoked_at == whole[serial].revocation_date_utc
        assert (said.reason is RevocationReason.CERTIFICATE_HOLD) == bool(serial % 3)


def test_what_is_not_signed_is_not_parsed() -> None:
    """The library parses a list in one call: 64 MB of it held everybody for half a second, whoever had sent them."""
    signed, *behind = elements(content(LIST))
    parts = elements(content(signed))
    parts[5] = element(0x30, element(0x30, b"\x02\x01\x07") * 3)  # Entries without a date.
    forged = element(0x30, element(0x30, b"".join(parts)) + b"".join(behind))
    with pytest.raises(ValueError, match="revocation_date"):
        x509.load_der_x509_crl(forged)
    assert refusal(forged) is CrlProblem.CRL_BAD_SIGNATURE
    assert refusal(signed_by(content(forged)[: -sum(map(len, behind))], CA.key)) is CrlProblem.CRL_MALFORMED


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", CrlProblem.CRL_MALFORMED),
        (b"no list", CrlProblem.CRL_MALFORMED),
        (b"-----BEGIN X509 CRL-----\n!\n-----END X509 CRL-----", CrlProblem.CRL_MALFORMED),
        (b"-----BEGIN X509 CRL-----\nMAM\n-----END X509 CRL-----", CrlProblem.CRL_MALFORMED),
        (b"\x30\x03\x02\x01\x01", CrlProblem.CRL_MALFORMED),
        (crl(CA)[:-9], CrlProblem.CRL_MALFORMED),
        (LIST + b"\0", CrlProblem.CRL_MALFORMED),
        (b"\x30\x83\0" + LIST[2:], CrlProblem.CRL_MALFORMED),
        (b"\x30\x80" + LIST[4:] + b"\0\0", CrlProblem.CRL_MALFORMED),
        (b"\x30\x85\x01" + LIST[:2] + LIST[2:], CrlProblem.CRL_MALFORMED),
        (crl(CA, more=LARGE), CrlProblem.CRL_MALFORMED),
        (crl(CA, {7: None}, more_of_entries=LARGE), CrlProblem.CRL_MALFORMED),
        (PKI.anchors.encode(), CrlProblem.CRL_MALFORMED),
        (crl(CA, signed_by=impostor_of(CA)), CrlProblem.CRL_BAD_SIGNATURE),
        (crl(CA)[:-3] + b"\0\0\0", CrlProblem.CRL_BAD_SIGNATURE),
        (crl(PKI.root), CrlProblem.CRL_WRONG_ISSUER),
        (crl(CA, point=scope(indirect=True)), CrlProblem.CRL_UNSUPPORTED),
        (crl(CA, point=scope(reasons=frozenset({HOLD}))), CrlProblem.CRL_UNSUPPORTED),
        (crl(CA, point=scope(attributes_only=True)), CrlProblem.CRL_UNSUPPORTED),
        (crl(CA, more=STRANGE), CrlProblem.CRL_UNSUPPORTED),
        (crl(CA, {7: None}, more_of_entries=STRANGE), CrlProblem.CRL_UNSUPPORTED),
        (without_next_update(crl(CA)), CrlProblem.CRL_UNSUPPORTED),
        (crl(CA, number=1 << 160), CrlProblem.CRL_UNSUPPORTED),
        (crl(CA, number=1, base=1 << 160), CrlProblem.CRL_UNSUPPORTED),
        (crl(CA).replace(ECDSA_WITH_SHA256, UNKNOWN_ALGORITHM), CrlProblem.CRL_BAD_SIGNATURE),
    ],
)
def test_what_is_wrong_is_named(content: bytes, code: CrlProblem) -> None:
    assert refusal(content) is code


@pytest.mark.parametrize("at", [1, 2])
def test_a_list_at_which_the_library_panics_is_malformed(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever fetches lists goes on with the next one: anybody on the network can answer."""
    load, calls = x509.load_der_x509_crl, itertools.count(1)
    monkeypatch.setattr(x509, "load_der_x509_crl", lambda der: panic() if next(calls) == at else load(der))
    assert refusal(LIST) is CrlProblem.CRL_MALFORMED


def test_a_list_at_whose_signature_the_library_panics_is_not_its_issuer_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashlib, "new", lambda *_: panic())
    assert refusal(LIST) is CrlProblem.CRL_BAD_SIGNATURE


def test_a_list_with_an_entry_that_cannot_be_read_is_malformed() -> None:
    issuer = x509.UnrecognizedExtension(x509.CertificateIssuer.oid, b"\x30\x02\xa3\x00")  # An X.400 address.
    now = datetime.now(UTC)
    entry = x509.RevokedCertificateBuilder(17, now).add_extension(issuer, critical=False).build()
    builder = x509.CertificateRevocationListBuilder(CA.certificate.subject, now, now + timedelta(hours=1))
    builder = builder.add_revoked_certificate(entry)
    listed = builder.add_extension(x509.CRLNumber(1), critical=False).sign(CA.key, hashes.SHA256())
    with pytest.raises(CrlRefused, match="entry 1 or one behind it cannot be read: x400"):
        read_entries(parse(listed.public_bytes(Encoding.DER)), never_pauses)


def named(full: x509.GeneralName | None, relative: str | None = None) -> x509.IssuingDistributionPoint:
    part = (
        x509.RelativeDistinguishedName([x509.NameAttribute(x509.NameOID.COMMON_NAME, relative)]) if relative else None
    )
    names = None if full is None else [full]
    return x509.IssuingDistributionPoint(names, part, False, False, None, False, False)


@pytest.mark.parametrize(
    "point", [named(x509.DirectoryName(PKI.root.certificate.subject)), named(None, "shard")], ids=["full", "relative"]
)
def test_a_part_of_a_list_that_no_certificate_can_name_is_not_taken_for_the_whole(
    point: x509.IssuingDistributionPoint,
) -> None:
    with pytest.raises(CrlRefused, match="a distribution point that is not a URI") as caught:
        parse(crl(PKI.issuing, point=point))
    assert caught.value.code is CrlProblem.CRL_UNSUPPORTED


def test_a_client_certificate_signs_no_list() -> None:
    device = PKI.device("meter-1")
    with pytest.raises(CrlRefused) as caught:
        verify(parse(crl(device)), device.certificate)
    assert caught.value.code is CrlProblem.CRL_WRONG_ISSUER


@pytest.mark.parametrize(
    ("scope_", "authority", "names", "covered"),
    [
        (Scope(), False, set(), True),
        (Scope(users_only=True), False, set(), True),
        (Scope(users_only=True), True, set(), False),
        (Scope(authorities_only=True), False, set(), False),
        (Scope(frozenset({URL})), False, {URL, "http://other"}, True),
        (Scope(frozenset({URL})), False, {"http://other"}, False),
        (Scope(frozenset({URL})), False, set(), False),
    ],
)
def test_a_scope_covers_what_it_says(scope_: Scope, authority: bool, names: set[str], covered: bool) -> None:
    assert scope_.covers(is_authority=authority, names=frozenset(names)) is covered


def test_the_scope_is_that_of_the_list() -> None:
    assert parse(crl(CA, point=scope(URL, users_only=True))).scope == Scope(frozenset({URL}), users_only=True)
    assert parse(crl(CA, freshest="http://pki.example/delta.crl")).delta_urls == ("http://pki.example/delta.crl",)
    assert parse(crl(CA, number=None, life=timedelta(days=1))).number > 1_700_000_000


def test_the_lists_of_a_certificate_are_its_own_issuer_s_for_all_reasons() -> None:
    def point(
        name: str, reasons: frozenset[x509.ReasonFlags] | None = None, issuer: bool = False
    ) -> x509.DistributionPoint:
        other = [x509.DirectoryName(PKI.root.certificate.subject)] if issuer else None
        return x509.DistributionPoint([x509.UniformResourceIdentifier(name)], None, reasons, other)

    relative = x509.RelativeDistinguishedName([x509.NameAttribute(x509.NameOID.COMMON_NAME, "shard")])
    points = [
        point("http://pki.example/some-reasons.crl", frozenset({HOLD})),
        point("http://pki.example/another-issuer.crl", issuer=True),
        x509.DistributionPoint(None, relative, None, None),
        x509.DistributionPoint([x509.DirectoryName(PKI.root.certificate.subject)], None, None, None),
        point(URL),
    ]
    device = PKI.device("meter-1", extensions=[x509.CRLDistributionPoints(points)])
    assert distribution_points(device.certificate) == (URL,)
    assert distribution_points(shared_device("meter-1").certificate) == ()
