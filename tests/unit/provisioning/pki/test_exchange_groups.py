"""A server exchanges keys on elliptic curves, in OpenSSL's own order, unless the machine's configuration says other."""

from __future__ import annotations

import ssl

import pytest

from provisioning.pki import exchange_groups
from provisioning.pki.tls import ClientCertificate, server_context
from tests.support.client_hellos import (
    FFDHE2048,
    FFDHE3072,
    HANDSHAKE_FAILURE,
    HYBRID,
    P256,
    P384,
    RETRY,
    X25519,
    answer_of,
    hello,
)
from tests.support.pki import shared_pki

PKI = shared_pki()
UNKNOWN = 0x3A3A


def ours() -> ssl.SSLContext:
    return server_context(PKI.broker().credential, PKI.anchors, client_certificate=ClientCertificate.REQUIRED)


def untouched() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    PKI.broker().credential.load_into(context)
    return context


def test_a_finite_field_is_no_group() -> None:
    for group in (FFDHE2048, FFDHE3072):
        assert answer_of(ours(), hello(groups=[group], shares=[])) == HANDSHAKE_FAILURE
    assert RETRY in answer_of(untouched(), hello(groups=[FFDHE2048], shares=[])), "OpenSSL would take it"


@pytest.mark.parametrize(
    "groups", [(FFDHE3072, P384), (P384, P256), (HYBRID, X25519), (X25519, HYBRID), (P256, X25519), (X25519,), (P384,)]
)
def test_the_choice_between_curves_is_openssl_s(groups: tuple[int, ...]) -> None:
    """As long as no share has come, and with a share of X25519 where it is not what OpenSSL likes best."""
    shares = [(X25519, b"\x09" + bytes(31))] if X25519 in groups else []
    asked = hello(groups=groups, shares=shares)
    ours_, theirs = answer_of(ours(), asked), answer_of(untouched(), asked)
    assert (RETRY in ours_) == (RETRY in theirs)
    if RETRY in ours_:
        assert ours_ == theirs


def test_the_machine_s_configuration_decides_which_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution may list every finite field; that is no choice of somebody who runs servers."""
    monkeypatch.setattr(exchange_groups, "configured", lambda: (X25519, P384, FFDHE2048))
    assert RETRY in answer_of(ours(), hello(groups=[FFDHE2048, P384], shares=[]))
    for group in (FFDHE2048, P256):
        assert answer_of(ours(), hello(groups=[group], shares=[])) == HANDSHAKE_FAILURE


@pytest.mark.parametrize("groups", [(FFDHE2048,), (UNKNOWN, FFDHE2048), (X25519, P384)])
def test_what_cannot_be_said_without_finite_fields_stays(
    monkeypatch: pytest.MonkeyPatch, groups: tuple[int, ...]
) -> None:
    monkeypatch.setattr(exchange_groups, "configured", lambda: groups)
    assert RETRY in answer_of(ours(), hello(groups=[FFDHE2048], shares=[])), (
        "as in OpenSSL's own choice, untouched here"
    )


def test_openssl_s_own_choice_is_asked_for_and_every_curve_in_it_stays() -> None:
    """It changes with the version: 4.0 has three groups more."""
    built_in = exchange_groups.configured()
    curves = exchange_groups._curves_of(built_in)
    assert FFDHE2048 in built_in
    assert list(exchange_groups._offered(curves)) == [each for each in built_in if not 0x0100 <= each < 0x0200]
