"""A server that remembers verified paths says of every client, however often it comes, what one says that does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from device_sim.attack.der import key_pretending_to_be
from device_sim.attack.der import pem as pem_of_der
from provisioning.pki import verified_before
from provisioning.pki.identity import Identity
from provisioning.pki.keys import key_to_pem
from provisioning.pki.role import Role
from provisioning.pki.tls import ClientCertificate, server_context
from tests.support.memory_handshake import Outcome, shake_hands
from tests.support.pki import DOMAIN, SERVER, Held, Pki, pem_of, shared_device, shared_pki

pytestmark = pytest.mark.skipif(not verified_before.CAN_REMEMBER_PATHS, reason="OpenSSL cannot call back")

PKI = shared_pki()
ROOT, ISSUING = PKI.root.certificate, PKI.issuing.certificate
METER = shared_device("meter-1")
KEY = key_to_pem(METER.key)


def altered(certificate: x509.Certificate) -> bytes:
    """Return *certificate* as PEM, with another signature."""
    der = bytearray(certificate.public_bytes(Encoding.DER))
    der[-1] ^= 1
    return pem_of_der(bytes(der))


def below(**different: object) -> bytes:
    """Return a device below a CA of its own, that is not valid if that CA is *different*."""
    authority = PKI.authority("Another CA", PKI.root, **different)
    return PKI.certify(Identity(DOMAIN, Role.DEVICE, "meter-1", "meters"), issuer=authority).pem


def again(authority: Held, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Return another certificate of *authority*, by the same root, for *key*."""
    name = authority.certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    return PKI.authority(str(name), PKI.root, key=key).certificate


@cache
def cast() -> dict[str, bytes]:
    """Return what clients present: private key and certificates."""
    leaf = METER.certificate
    others = [PKI.authority(f"CA {number}", PKI.root).certificate for number in range(8)]
    return {
        "good": METER.pem,
        "another": shared_device("meter-2").pem,
        "its certificate alone": KEY + pem_of(leaf),
        "with the anchor": KEY + pem_of(leaf, ISSUING, ROOT),
        "with one that nobody needs": KEY + pem_of(leaf, ISSUING, others[0]),
        "with too many to be remembered": KEY + pem_of(leaf, ISSUING, *others),
        "with the issuer's other certificate": KEY + pem_of(leaf, again(PKI.issuing, PKI.issuing.key)),
        "with an issuer of another key": KEY + pem_of(leaf, again(PKI.issuing, METER.key)),
        "another signature": KEY + altered(leaf) + pem_of(ISSUING),
        "another signature of the issuer": KEY + pem_of(leaf) + altered(ISSUING),
        "without its key": key_pretending_to_be(leaf) + pem_of(leaf, ISSUING),
        "expired": PKI.device("meter-1", not_after=PKI.now - timedelta(minutes=1)).pem,
        "not valid yet": PKI.device("meter-1", not_before=PKI.now + timedelta(hours=1)).pem,
        "of a CA that has ended": below(not_after=PKI.now - timedelta(minutes=1)),
        "of a CA of its own": below(),
        "of another fleet": Pki().device("meter-1").pem,
        "by itself": PKI.self_signed(Identity(DOMAIN, Role.DEVICE, "meter-1", "meters")).pem,
        "a server's": PKI.device("meter-1", purposes=SERVER[:1]).pem,
        "the anchor's": PKI.issuing.pem,
    }


ANCHORS = {"root": pem_of(ROOT), "issuing CA": pem_of(ISSUING), "both": pem_of(ROOT, ISSUING)}


def server(anchors: str, most: int) -> Callable[[str], Outcome]:
    context = server_context(
        PKI.broker().credential,
        ANCHORS[anchors].decode(),
        client_certificate=ClientCertificate.REQUIRED,
        remembered_paths=most,
    )
    return lambda who: shake_hands(context, PKI.anchors, cast()[who])[0]


@cache
def slow_twins() -> dict[tuple[str, str], Outcome]:
    """Return what a server says that verifies each time: of each client, with each choice of anchors."""

    def said() -> Iterator[tuple[tuple[str, str], Outcome]]:
        for anchors in ANCHORS:
            verifies = server(anchors, 0)
            for who in cast():
                yield (anchors, who), verifies(who)

    return dict(said())


@given(
    st.sampled_from(sorted(ANCHORS)),
    st.integers(1, 3),
    st.lists(st.sampled_from(sorted(cast())), min_size=2, max_size=9),
)
def test_whoever_comes_again_is_told_what_he_was_told_at_first(anchors: str, most: int, who_comes: list[str]) -> None:
    remembers = server(anchors, most)
    for who in who_comes:
        assert remembers(who) == slow_twins()[anchors, who], who


def test_the_cast_is_let_in_and_refused_for_many_reasons() -> None:
    """Otherwise the property says little."""
    refusals = {outcome.refusal for outcome in slow_twins().values()}
    paths = {tuple(outcome.path) for outcome in slow_twins().values()}
    assert len(refusals) >= 7, refusals
    assert len(paths) >= 6
