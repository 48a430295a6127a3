"""One context for each kind of key: with two kinds in one, a client would present the certificate of another."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from device_sim.link.shared_context import SharedContext, kind_of_key
from provisioning.pki.keys import PrivateKey
from provisioning.pki.tls import CredentialPem, client_context
from tests.support.foreign_ca import ForeignCa
from tests.support.slow_keys import rsa_key

KEYS: dict[str, PrivateKey] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "RSA 2048": rsa_key(),
    "RSA 3072": rsa_key(3072),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}
CA = ForeignCa()


def credential(kind: str) -> CredentialPem:
    held = CA.issue("meter-1", key=KEYS[kind])
    return CredentialPem(held.pem + held.key_pem)


def test_keys_of_one_kind_share_a_context_and_no_others_do() -> None:
    shared = SharedContext(lambda: client_context(CA.pem))
    contexts = {kind: shared.of(credential(kind)) for kind in KEYS}
    assert contexts["P-256"] is contexts["P-384"]
    assert contexts["RSA 2048"] is contexts["RSA 3072"]
    assert len({*map(id, contexts.values()), id(shared.of(None))}) == 4
    assert shared.of(credential("P-256")) is contexts["P-256"]


@pytest.mark.parametrize("kind", ["P-256", "RSA 2048"])
def test_an_older_form_of_a_key_is_of_one_kind_too(kind: str) -> None:
    pem = KEYS[kind].private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    assert kind_of_key(CredentialPem(b"", pem)) == kind_of_key(CredentialPem(b"-----BEGIN X-----", pem)) != b""
    assert kind_of_key(CredentialPem(b"no key")) == b""
