"""The revocation index: who is revoked while any source says so, what is final, and what is taken back."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID

from provisioning.pki.revocation import OCSP, Revocation, RevocationIndex, certificate_key, pack, unpack
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.manufacturer import Manufacturer
from tests.support.pki import shared_device, shared_pki

KEY = (b"issuer", 7)
SINCE = datetime(2026, 11, 1, 12, 30, 59, tzinfo=UTC)
LATER = SINCE + timedelta(days=1)
HOLD = RevocationReason.CERTIFICATE_HOLD
FINAL = [reason for reason in RevocationReason if reason is not HOLD]


def revocation(reason: RevocationReason = RevocationReason.KEY_COMPROMISE, since: datetime = SINCE) -> Revocation:
    return Revocation(*KEY, reason, since)


@pytest.fixture
def index() -> RevocationIndex:
    return RevocationIndex()


@pytest.mark.parametrize("reason", RevocationReason)
def test_reason_and_time_are_kept_in_one_integer(reason: RevocationReason) -> None:
    assert unpack(KEY, pack(reason, SINCE)) == revocation(reason)
    assert reason.final is (reason is not HOLD)
    assert x509.ReasonFlags(reason).value == reason.value


def test_every_reason_of_the_standard_but_the_one_of_deltas_is_known() -> None:
    assert {x509.ReasonFlags(reason) for reason in RevocationReason} == set(x509.ReasonFlags) - {
        x509.ReasonFlags.remove_from_crl
    }


def test_an_event_revokes_that_certificate_of_that_issuer(index: RevocationIndex) -> None:
    assert index.find(KEY) is None
    assert index.add(revocation()), "it is news"
    assert index.find(KEY) == revocation()
    assert index.find((b"another", 7)) is None
    assert index.find((b"issuer", 8)) is None


@pytest.mark.parametrize("reason", FINAL)
def test_what_is_final_stands_but_for_a_compromise_that_becomes_known(
    index: RevocationIndex, reason: RevocationReason
) -> None:
    index.add(revocation(reason))
    for other in set(RevocationReason) - {RevocationReason.KEY_COMPROMISE}:
        assert not index.add(revocation(other, LATER)), "no news"
    assert not index.release(KEY)
    assert index.find(KEY) == revocation(reason)
    for other in (RevocationReason.KEY_COMPROMISE, *RevocationReason):
        assert not index.add(revocation(other, LATER)), "no news"
        assert index.find(KEY) == revocation(RevocationReason.KEY_COMPROMISE), "since when it was revoked"
    assert not index.release(KEY)
    assert len(index) == 1


def test_a_hold_gives_way_to_a_final_reason_and_can_be_taken_back(index: RevocationIndex) -> None:
    assert not index.release(KEY)
    index.add(revocation(HOLD))
    assert index.release(KEY)
    assert index.find(KEY) is None
    assert not index.release(KEY)
    assert index.add(revocation(HOLD, LATER)), "news again"
    assert not index.add(revocation(HOLD)), "an earlier one, of a history that is read again"
    assert index.find(KEY) == revocation(HOLD, LATER)
    assert not index.add(revocation(since=LATER)), "it was revoked before"
    assert index.find(KEY) == revocation(since=LATER)
    assert not index.release(KEY)
    assert index.find(KEY) == revocation(since=LATER)


def test_a_certificate_is_revoked_while_any_source_says_so(index: RevocationIndex) -> None:
    listed = {7: pack(RevocationReason.SUPERSEDED, LATER)}
    index.publish(b"issuer", "list", listed)
    index.publish(b"issuer", OCSP, listed | {9: listed[7]})
    index.add(revocation(HOLD))
    assert index.sizes() == {"feed": 1, "crl": 1, OCSP: 2}
    assert len(index) == 4
    assert index.find(KEY) == revocation(HOLD), "the event comes first"
    index.release(KEY)
    assert index.find(KEY) == revocation(RevocationReason.SUPERSEDED, LATER)
    index.publish(b"issuer", "list", {})
    assert index.find(KEY) is not None
    assert index.listed(b"issuer", OCSP) == listed | {9: listed[7]}
    assert index.listed(b"issuer", "list") == {}
    assert index.listed(b"another", OCSP) == {}
    index.publish(b"issuer", OCSP, {})
    assert index.find(KEY) is None
    assert index.find((b"another", 7)) is None


def test_a_certificate_is_named_by_its_issuers_key_or_else_by_its_issuers_name() -> None:
    held = shared_device("meter-1")
    key_id = x509.SubjectKeyIdentifier.from_public_key(shared_pki().issuing.key.public_key()).digest
    assert certificate_key(held.certificate) == (key_id, held.certificate.serial_number)
    assert certificate_key(held.certificate) == held.revocation.key
    assert replace(held.revocation, serial=1).key == (key_id, 1)


def test_an_issuer_s_name_is_the_same_in_strings_of_every_kind_and_no_other_is() -> None:
    kinds = _ASN1Type.UTF8String, _ASN1Type.PrintableString
    names = [Manufacturer("Acme", strings=kind).name for kind in kinds]
    assert names[0].public_bytes() != names[1].public_bytes()
    keys = {certificate_key(Manufacturer("Acme").idevid("SN1", issuer=name)[0])[0] for name in names}
    assert len(keys) == 1, "without an Authority Key Identifier"
    for other in ("acme", "Acme ", "Acme'"):
        assert certificate_key(Manufacturer(other).idevid("SN1")[0])[0] not in keys
    shapes = [["Acme"], ["east"]], [["east"], ["Acme"]], [["Acme", "east"]], [["Acmeeast"]]
    unit = NameOID.ORGANIZATIONAL_UNIT_NAME
    parts = [[[x509.NameAttribute(unit, text) for text in part] for part in shape] for shape in shapes]
    shaped = [x509.Name([x509.RelativeDistinguishedName(part) for part in each]) for each in parts]
    assert len({certificate_key(Manufacturer().idevid("SN1", issuer=name)[0])[0] for name in shaped}) == len(shapes)
