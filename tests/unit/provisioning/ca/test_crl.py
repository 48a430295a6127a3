from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from provisioning.ca.ceremony import Authority, found_authority
from provisioning.ca.crl import CrlIssuer, CrlRefused, CrlRequest, entry_of, removal_of
from provisioning.ca.signing import hash_for
from provisioning.pki.keys import PrivateKey, generate_key, key_identifier
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.requests import NOON
from tests.support.slow_keys import rsa_key

REQUEST = CrlRequest(7, NOON, NOON + timedelta(days=1), {})


@pytest.fixture(scope="module")
def authority() -> Authority:
    return found_authority("fleet.internal", NOON, (1, 2))


@pytest.fixture
def issuer(authority: Authority) -> CrlIssuer:
    return CrlIssuer(authority.issuing_ca.certificate, authority.issuing_ca.key)


def test_a_crl_says_who_is_revoked_since_when_and_why(issuer: CrlIssuer) -> None:
    reasons = dict(enumerate(RevocationReason, 10))
    crl = issued(issuer, entries={serial: entry_of(serial, NOON, reason) for serial, reason in reasons.items()})
    assert crl.is_signature_valid(issuer.certificate.public_key())  # type: ignore[arg-type]
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == 7
    authority_key = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert authority_key.key_identifier == key_identifier(issuer.certificate.public_key())
    assert (crl.last_update_utc, crl.next_update_utc) == (NOON, NOON + timedelta(days=1))
    for serial, reason in reasons.items():
        found = crl.get_revoked_certificate_by_serial_number(serial)
        assert found is not None
        assert found.revocation_date_utc == NOON
        if reason is RevocationReason.UNSPECIFIED:
            assert not list(found.extensions)  # RFC 5280 §5.3.1
        else:
            assert found.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags(reason)


def issued(issuer: CrlIssuer, **changes: object) -> x509.CertificateRevocationList:
    request = replace(REQUEST, **changes)  # type: ignore[arg-type]
    return x509.load_der_x509_crl(issuer.issue(issuer.prepare(request)))


@given(
    entries=st.dictionaries(
        st.integers(1, (1 << 159) - 1),
        st.tuples(st.datetimes(datetime(1950, 1, 1), datetime(2120, 1, 1)), st.sampled_from(RevocationReason)),  # noqa: DTZ001
        max_size=20,
    ),
    number=st.integers(1, (1 << 159) - 1),
)
def test_the_fields_are_those_that_the_library_makes(
    entries: dict[int, tuple[datetime, RevocationReason]], number: int
) -> None:
    made = found_authority("fleet.internal", NOON, (1, 2)).issuing_ca
    issuer = CrlIssuer(made.certificate, made.key)
    facts = {serial: (at.replace(microsecond=0, tzinfo=UTC), reason) for serial, (at, reason) in entries.items()}
    crl = issued(issuer, number=number, entries={serial: entry_of(serial, *fact) for serial, fact in facts.items()})
    builder = x509.CertificateRevocationListBuilder(made.certificate.subject, NOON, NOON + timedelta(days=1))
    for serial, (at, reason) in facts.items():
        entry = x509.RevokedCertificateBuilder(serial, at)
        if reason is not RevocationReason.UNSPECIFIED:
            entry = entry.add_extension(x509.CRLReason(x509.ReasonFlags(reason)), critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    for extension in (x509.AuthorityKeyIdentifier(issuer.key_id, None, None), x509.CRLNumber(number)):
        builder = builder.add_extension(extension, critical=False)
    assert crl.tbs_certlist_bytes == builder.sign(made.key, hashes.SHA256()).tbs_certlist_bytes
    assert crl.is_signature_valid(made.key.public_key())


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa_key(),
        ed25519.Ed25519PrivateKey.generate(),
    ],
    ids=["P-384", "RSA", "Ed25519"],
)
def test_any_kind_of_key_signs(key: PrivateKey) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "CA")])
    certificate = x509.CertificateBuilder(name, name, key.public_key(), 1, NOON, NOON + timedelta(days=2)).sign(
        key, hash_for(key)
    )
    entries = {serial: entry_of(serial, NOON, RevocationReason.SUPERSEDED) for serial in (5, 7, 300)}
    for encoded in (None, list(entries.values()), [b"".join(entries.values())]):
        crl = issued(CrlIssuer(certificate, key), entries=entries, encoded=encoded)
        assert crl.is_signature_valid(key.public_key())
        assert [each.serial_number for each in crl] == list(entries)


def test_a_shard_s_list_repeats_the_distribution_point(issuer: CrlIssuer) -> None:
    crl = issued(issuer, distribution_point="http://ca.example.org/crl/issuing-ca-3.crl")
    extension = crl.extensions.get_extension_for_class(x509.IssuingDistributionPoint)
    assert extension.critical
    assert extension.value.only_contains_user_certs
    assert list(extension.value.full_name or ()) == [
        x509.UniformResourceIdentifier("http://ca.example.org/crl/issuing-ca-3.crl")
    ]
    # RFC 5280 §5.2.5: SEQUENCE { [0] name, [1] TRUE } and no boolean that has its default.
    assert extension.value.public_bytes().endswith(bytes.fromhex("8101ff"))


def test_a_delta_names_its_base_and_takes_entries_back(issuer: CrlIssuer) -> None:
    delta = issued(issuer, number=9, base_number=7, delta_url="http://x/d", entries={5: removal_of(5, NOON)})
    indicator = delta.extensions.get_extension_for_class(x509.DeltaCRLIndicator)
    assert (indicator.critical, indicator.value.crl_number) == (True, 7)
    (entry,) = delta
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.remove_from_crl
    with pytest.raises(x509.ExtensionNotFound):  # RFC 5280 §5.2.6: in complete lists only.
        delta.extensions.get_extension_for_class(x509.FreshestCRL)
    complete = issued(issuer, delta_url="http://x/d")
    freshest = complete.extensions.get_extension_for_class(x509.FreshestCRL)
    assert not freshest.critical
    (point,) = freshest.value
    assert point.full_name == [x509.UniformResourceIdentifier("http://x/d")]


def test_a_delta_has_the_scope_of_its_base(issuer: CrlIssuer) -> None:
    shard = "http://ca.example.org/crl/issuing-ca-3.crl"
    base = issued(issuer, number=7, distribution_point=shard, delta_url="http://x/d")
    delta = issued(issuer, number=9, base_number=7, distribution_point=shard, delta_url="http://x/d")
    scopes = [each.extensions.get_extension_for_class(x509.IssuingDistributionPoint) for each in (base, delta)]
    assert scopes[0] == scopes[1], "RFC 5280 §5.2.4: the same scope, and both say it critically"
    for whole in (issued(issuer), issued(issuer, number=9, base_number=7)):
        with pytest.raises(x509.ExtensionNotFound):
            whole.extensions.get_extension_for_class(x509.IssuingDistributionPoint)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (replace(REQUEST, number=0), "CRL number 0"),
        (replace(REQUEST, number=1 << 159), "CRL number"),
        (replace(REQUEST, next_update=NOON), "nextUpdate"),
        (replace(REQUEST, base_number=8), "cannot continue"),
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
        entries = {serial: entry_of(serial, NOON, RevocationReason.UNSPECIFIED) for serial in range(1, number + 1)}
        begun = time.process_time()
        issuer.issue(issuer.prepare(replace(REQUEST, entries=entries)))
        return time.process_time() - begun

    assert min(seconds(12_000) for _ in range(3)) < 8 * min(seconds(3_000) for _ in range(3))
