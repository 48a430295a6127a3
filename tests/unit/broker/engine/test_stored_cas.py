"""The CAs above a certificate, in the store: what is read there finds the same revocations as what was written."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.admission.path_ends import VerifiedPath
from broker.engine.stored_cas import StoredCas, cas_of, cas_text, certificate_of
from provisioning.pki.revocation import RevocationIndex, whole_key
from tests.support.pki import Held, shared_pki

PKI = shared_pki()
PATH = VerifiedPath([PKI.issuing.der, PKI.root.der])


@pytest.mark.parametrize(("revoked", "found"), [(PKI.issuing, True), (PKI.device("meter-1"), False)])
def test_it_finds_what_they_themselves_find(revoked: Held, *, found: bool) -> None:
    text, index = cas_text(PATH), RevocationIndex()
    assert text
    index.add(revoked.revocation)
    stored = StoredCas(text).find_revoked(index)
    assert (stored is not None) is (PATH.find_revoked(index) is not None) is found
    assert stored is None or stored == (f"{revoked.certificate.serial_number:x}", index.find(revoked.revocation.key))


def test_a_ca_that_is_revoked_by_its_key_is_told_by_that() -> None:
    """The serial number was 0."""
    issuer_key_id, serial = whole_key(PATH.authority_key_id)
    index = RevocationIndex()
    index.add(replace(PKI.issuing.revocation, issuer_key_id=issuer_key_id, serial=serial))
    found = StoredCas(cas_text(PATH) or "").find_revoked(index)
    assert found is not None
    assert found[0] == f"with the key {PATH.authority_key_id.hex()}"


def test_what_was_read_is_written_as_it_was() -> None:
    text = cas_text(PATH)
    assert cas_text(StoredCas(text or "")) == text
    assert (cas_text(StoredCas("")), cas_text(None)) == ("", None), "there is none, and none is known"


@pytest.mark.parametrize("text", ["ab", "ab:", "xy:1", "ab:1 :"])
def test_what_no_broker_has_written_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"invalid literal|fromhex"):
        certificate_of(text) if " " not in text else StoredCas(text)


def test_hundreds_of_thousands_that_are_restored_share_what_is_known_of_their_cas() -> None:
    assert cas_of("ab:1 cd:2") is cas_of("ab:1 " + "cd:2")
    assert cas_of("ab:1 cd:3").path_revoked_as == ((b"\xab", 1), (b"\xcd", 3))
