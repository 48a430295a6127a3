"""A server hands out the staple that it was given for the context, to who asks, as long as it is good."""

from __future__ import annotations

import gc
import ssl
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp

from provisioning.pki import openssl, stapling
from tests.support.asking_client import BROKER, Asking, served

TRY_LATER, UNAUTHORIZED = (
    ocsp.OCSPResponseBuilder.build_unsuccessful(each).public_bytes(Encoding.DER)
    for each in (ocsp.OCSPResponseStatus.TRY_LATER, ocsp.OCSPResponseStatus.UNAUTHORIZED)
)
"""From 4.0 on OpenSSL sends what is a response, and nothing else."""


def later() -> float:
    return time.time() + 60


def test_a_context_tells_its_certificate() -> None:
    assert stapling.own_certificate(served()) == BROKER.der
    assert stapling.own_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) == b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_who_asks_is_handed_the_staple_and_the_server_keeps_no_copy(version: ssl.TLSVersion) -> None:
    server, response = served(), UNAUTHORIZED
    assert stapling.staple(server, response, later())
    asking = Asking(server, version=version)
    assert asking.shake_hands() == response
    assert asking.stapled(asking.server) == response
    stapling.forget_staple(asking.server_address)
    assert asking.stapled(asking.server) is None
    assert stapling.staple(server, TRY_LATER, later())
    assert Asking(server, version=version).shake_hands() == TRY_LATER


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_what_has_ended_or_is_empty_is_not_stapled(version: ssl.TLSVersion) -> None:
    server = served()
    assert Asking(server, version=version).shake_hands() is None
    for response, until in ((TRY_LATER, time.time() - 1), (b"", later())):
        assert stapling.staple(server, response, until)
        assert Asking(server, version=version).shake_hands() is None


def test_each_context_has_its_own_staple_and_takes_it_away_when_it_goes() -> None:
    one, other = served(), served()
    stapling.staple(one, TRY_LATER, later())
    stapling.staple(other, UNAUTHORIZED, later())
    before = len(stapling._staples)
    asking = Asking(one)
    del one
    gc.collect()
    assert asking.shake_hands() == TRY_LATER, "a connection keeps its context"
    del asking
    gc.collect()
    assert len(stapling._staples) == before - 1
    assert Asking(other).shake_hands() == UNAUTHORIZED


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_defect_costs_the_staple_and_not_the_handshake(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    server = served()
    stapling.staple(server, TRY_LATER, later())

    def fail() -> float:
        raise error

    monkeypatch.setattr(time, "time", fail)
    assert Asking(server).shake_hands() is None


def test_where_openssl_cannot_call_back_nothing_is_stapled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stapling, "_STATUS_CALLBACK", None)
    server = served()
    assert not stapling.staple(server, TRY_LATER, later())
    assert Asking(server).shake_hands() is None
    monkeypatch.setattr(openssl, "AVAILABLE", False)
    assert stapling.own_certificate(server) == b""


def test_many_threads_shake_hands_while_the_staple_changes() -> None:
    server = served()
    responses = [TRY_LATER, UNAUTHORIZED] * 32
    stapling.staple(server, responses[0], later())

    def visit(number: int) -> bool:
        stapling.staple(server, responses[number], later())
        return Asking(server).shake_hands() in responses

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(visit, range(64)))
