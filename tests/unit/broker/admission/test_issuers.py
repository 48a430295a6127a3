"""Which CAs stand above a client, as far as their certificates tell."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from broker.admission.bundle import TrustBundle
from broker.admission.issuers import authorities_of
from provisioning.pki.keys import generate_key, key_identifier
from provisioning.pki.revocation import Revocation, RevocationIndex
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.pki import shared_pki

KEY = generate_key()
ROOT, BELOW = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("Root", "Below"))
BY_NAME = x509.AuthorityKeyIdentifier(None, [x509.DirectoryName(ROOT)], 17)
BY_KEY = x509.AuthorityKeyIdentifier(b"the root's", None, None)


def authority(subject: x509.Name, says: x509.AuthorityKeyIdentifier | None) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder(ROOT, subject, KEY.public_key(), 5)
        .not_valid_before(shared_pki().now)
        .not_valid_after(shared_pki().now)
    )
    return (builder if says is None else builder.add_extension(says, critical=False)).sign(KEY, hashes.SHA256())


@pytest.mark.parametrize(
    ("subject", "says", "above"),
    [
        (ROOT, None, ()),
        (ROOT, BY_NAME, ()),
        (BELOW, BY_KEY, (b"the root's",)),
        (BELOW, None, None),
        (BELOW, BY_NAME, None),
    ],
    ids=["a root that says nothing", "a root by its name", "by the key above", "nothing is said", "by a name alone"],
)
def test_the_last_of_a_path_names_who_is_above_or_nothing_is_known(
    subject: x509.Name, says: x509.AuthorityKeyIdentifier | None, above: tuple[bytes, ...] | None
) -> None:
    expected = () if above is None else (key_identifier(KEY.public_key()), *above)
    assert authorities_of([authority(subject, says)]) == expected


@pytest.mark.parametrize("named", [key_identifier(KEY.public_key()), b"the root's"], ids=["as lists do", "as it says"])
def test_a_ca_is_revoked_by_either_name_of_its_issuer_s_key_and_a_root_by_none(named: bytes) -> None:
    root, below = authority(ROOT, None), authority(BELOW, BY_KEY)
    issuer = TrustBundle("fleet", [root]).issuer_at([below, root])
    assert issuer is not None
    assert issuer.above is not None
    index = RevocationIndex()
    assert issuer.find_revoked(index) is None
    index.add(Revocation(named, 5, RevocationReason.CA_COMPROMISE, shared_pki().now))
    found = issuer.find_revoked(index)
    assert found is not None
    assert found[0] == "CN=Below"
    assert issuer.above.find_revoked(index) is None
