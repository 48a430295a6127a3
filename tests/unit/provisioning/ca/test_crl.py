from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509

from provisioning.ca.ceremony import Authority, found_authority
from provisioning.ca.crl import CrlEntry, CrlIssuer, CrlRefused, CrlRequest
from provisioning.pki.keys import generate_key, key_identifier
from provisioning.pki.revocation import RevocationReason
from tests.support.requests import NOON

REQUEST = CrlRequest(7, NOON, NOON + timedelta(days=1), ())


@pytest.fixture(scope="module")
def authority() -> Authority:
    return found_authority("fleet.internal", NOON, (1, 2))


@pytest.fixture
def issuer(authority: Authority) -> CrlIssuer:
    return CrlIssuer(authority.issuing_ca.certificate, authority.issuing_ca.key)


def test_a_crl_says_who_is_revoked_since_when_and_why(issuer: CrlIssuer) -> None:
    entries = [CrlEntry(10 + number, NOON, reason) for number, reason in enumerate(RevocationReason)]
    crl = issuer.issue(issuer.prepare(replace(REQUEST, entries=entries)))
    assert crl.is_signature_valid(issuer.certificate.public_key())  # type: ignore[arg-type]
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 7
    authority_key = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert authority_key.key_identifier == key_identifier(issuer.certificate.public_key())
    assert (crl.last_update_utc, crl.next_update_utc) == (NOON, NOON + timedelta(days=1))
    for entry in entries:
        found = crl.get_revoked_certificate_by_serial_number(entry.serial)
        assert found is not None
        assert found.revocation_date_utc == NOON
        if entry.reason is RevocationReason.UNSPECIFIED:
            assert not list(found.extensions)  # RFC 5280 §5.3.1
        else:
            assert found.extensions.get_extension_for_class(x509.CRLReason).value.reason is entry.reason.flag


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (replace(REQUEST, number=0), "CRL number 0"),
        (replace(REQUEST, number=1 << 159), "CRL number"),
        (replace(REQUEST, next_update=NOON), "nextUpdate"),
        (replace(REQUEST, entries=[CrlEntry(5, NOON, RevocationReason.SUPERSEDED)] * 2), "twice"),
    ],
)
def test_a_crl_that_would_be_wrong_is_not_prepared(issuer: CrlIssuer, request_: CrlRequest, words: str) -> None:
    with pytest.raises(CrlRefused, match=words):
        issuer.prepare(request_)


def test_what_is_prepared_is_signed_once_and_by_its_own_issuer(authority: Authority, issuer: CrlIssuer) -> None:
    prepared = issuer.prepare(REQUEST)
    with pytest.raises(CrlRefused, match="another issuer"):
        CrlIssuer(authority.root_ca.certificate, authority.root_ca.key).issue(prepared)
    issuer.issue(prepared)
    with pytest.raises(CrlRefused, match="signed already"):
        issuer.issue(prepared)


def test_the_key_must_be_the_certificate_s(authority: Authority) -> None:
    with pytest.raises(ValueError, match="does not belong"):
        CrlIssuer(authority.root_ca.certificate, generate_key())


def test_twice_the_entries_take_about_twice_the_time(issuer: CrlIssuer) -> None:
    def seconds(number: int) -> float:
        entries = [CrlEntry(serial, NOON, RevocationReason.UNSPECIFIED) for serial in range(1, number + 1)]
        begun = time.process_time()
        issuer.issue(issuer.prepare(replace(REQUEST, entries=entries)))
        return time.process_time() - begun

    # The builder's own add method would make it 16 times.
    assert min(seconds(12_000) for _ in range(3)) < 8 * min(seconds(3_000) for _ in range(3))
