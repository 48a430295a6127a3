"""The trust anchors as operators see them: those in use, each with its own names and its bundle."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.x509.oid import NameOID

from broker.admin.trust import trust_document
from broker.admission.bundle import TrustBundle
from broker.admission.trust import Trust
from provisioning.program.moments import rfc3339
from tests.support.crl import crl
from tests.support.held_lists import put
from tests.support.pki import DOMAIN, pem_of, shared_pki
from tests.support.slow_keys import rsa_key
from tests.support.wire import MemoryBroker

PKI = shared_pki()


def context(*anchors: x509.Certificate) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.load_verify_locations(cadata=pem_of(*anchors).decode())
    return made


def document(broker: MemoryBroker, *contexts: ssl.SSLContext) -> dict[str, Any]:
    return trust_document(contexts, broker.engine.admission, broker.now)


def anchor(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, days: int = 2) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Anchor {type(key).__name__}")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 0xAB12, now, now + timedelta(days=days, hours=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256() if isinstance(key, rsa.RSAPrivateKey) else None)


def test_each_anchor_in_use_is_shown_once_with_its_own_names(broker: MemoryBroker) -> None:
    root, issuing = PKI.root.certificate, PKI.issuing.certificate
    shown = document(broker, context(root, issuing), context(root))
    assert (shown["bundles"], shown["generation"], shown["trust_domain"]) == (["cafile"], 1, DOMAIN)
    by_name = {each["subject"]: each for each in shown["anchors"]}
    assert len(shown["anchors"]) == len(by_name) == 2
    assert by_name["CN=Test Issuing CA"] == {
        "bundles": ["cafile"],
        "subject": "CN=Test Issuing CA",
        "issuer": "CN=Test Root CA",
        "self_signed": False,
        "serial": f"{issuing.serial_number:x}",
        "key": "ECDSA secp256r1",
        "sha256": issuing.fingerprint(hashes.SHA256()).hex(),
        "not_after": rfc3339(issuing.not_valid_after_utc),
        "days_left": (issuing.not_valid_after_utc - datetime.now(UTC)).days,
    }
    assert by_name["CN=Test Root CA"]["self_signed"] is True


@pytest.mark.parametrize(
    ("key", "words"),
    [(rsa_key(), "RSA 2048"), (ed25519.Ed25519PrivateKey.generate(), "Ed25519")],
)
def test_an_anchor_s_key_is_named(
    broker: MemoryBroker, key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey, words: str
) -> None:
    (shown,) = document(broker, context(anchor(key, days=30)))["anchors"]
    assert (shown["key"], shown["days_left"], shown["serial"]) == (words, 30, "ab12")


def test_an_anchor_is_shown_with_the_bundles_that_have_it(broker: MemoryBroker) -> None:
    """One that no bundle has is in use no more, or not yet: it admits nobody."""
    root, issuing, other = (each.certificate for each in (PKI.root, PKI.issuing, PKI.authority("Other CA")))
    bundles = [TrustBundle("ours", [root]), TrustBundle("theirs", [root, issuing])]
    broker.engine.admission.believe(Trust(bundles))
    shown = document(broker, context(root, issuing, other))
    assert (shown["bundles"], shown["generation"]) == (["ours", "theirs"], broker.engine.admission.trust_generation)
    assert {each["subject"]: each["bundles"] for each in shown["anchors"]} == {
        "CN=Test Root CA": ["ours", "theirs"],
        "CN=Test Issuing CA": ["theirs"],
        "CN=Other CA": [],
    }


def test_the_revocation_data_is_shown_with_its_age_and_whether_anybody_is_admitted() -> None:
    broker = MemoryBroker(fresh=False)
    never = {"revoked_certificates": 0, "seconds_since_current": None, "newcomers_admitted": False}
    assert (document(broker)["revocation"], document(broker)["lists"]) == (never, [])
    broker.keep_fresh()
    put(broker.engine.admission, PKI.issuing, crl(PKI.issuing, {7: None, 8: None}, number=5))
    broker.now += 2.25
    shown = document(broker)
    assert shown["revocation"] == {"revoked_certificates": 2, "seconds_since_current": 2.2, "newcomers_admitted": True}
    assert [each["number"] for each in shown["lists"]] == [5]
    feed = TrustBundle("of the feed", [PKI.root.certificate], feed=True)
    broker.engine.admission.believe(Trust([feed, TrustBundle("listed", [PKI.issuing.certificate], feed=False)]))
    broker.now += 10_000
    assert document(broker)["revocation"]["newcomers_admitted"] is True, "those of one bundle are"
