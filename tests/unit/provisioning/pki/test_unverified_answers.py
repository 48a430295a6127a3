"""What OpenSSL finds where the answer of the call back should be lets nobody in whom it has not verified."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import socket
import ssl
import sys
from collections.abc import Iterator
from functools import cache
from typing import Self

import pytest

from broker.admission.refusal import RefusalCode
from broker.sockets.tls_refusal import code_of
from provisioning.pki import handshake_bounds, openssl, verified_before
from provisioning.pki.identity import Identity
from provisioning.pki.polite_handshake import PoliteHandshake
from provisioning.pki.role import Role
from provisioning.pki.tls import ClientCertificate, CredentialPem, client_context, server_context, verified_path
from tests.support.memory_handshake import shake_hands
from tests.support.pki import DOMAIN, shared_device, shared_pki

PKI = shared_pki()
METER = shared_device("meter-1")
STRANGER = PKI.self_signed(Identity(DOMAIN, Role.DEVICE, "meter-1", "meters"))
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)

pytestmark = pytest.mark.skipif(not verified_before.CAN_REMEMBER_PATHS, reason="OpenSSL cannot call back")


@cache
def client_of(pem: bytes) -> ssl.SSLContext:
    return client_context(PKI.anchors, CredentialPem(pem), allow_tls12=True)


def server(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, sessions: int = 0) -> ssl.SSLContext:
    context = server_context(
        PKI.broker().credential,
        PKI.anchors,
        client_certificate=ClientCertificate.REQUIRED,
        allow_tls12=True,
        remembered_paths=10,
        remembered_sessions=sessions,
    )
    context.maximum_version = version
    return context


class Connection:
    """A client's connection to a server, which continues its handshake as the broker's listener does."""

    def __init__(self, context: ssl.SSLContext, pem: bytes, session: ssl.SSLSession | None = None) -> None:
        self.near, self.far = socket.socketpair()
        for each in (self.near, self.far):
            each.setblocking(False)
        self.tls = context.wrap_socket(self.near.dup(), server_side=True, do_handshake_on_connect=False)
        self._address = openssl.address_of(self.tls)
        handshake_bounds.begin(self._address)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_of(pem)
        self.client = client.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost", session=session)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self.tls, self.near, self.far):
            each.close()

    def hear(self) -> None:
        """Have the client take what has arrived, and send what it says to it."""
        with contextlib.suppress(BlockingIOError):
            self._incoming.write(self.far.recv(65536))
        with contextlib.suppress(ssl.SSLError):  # The server's alert included.
            self.client.do_handshake()
            self.client.read(1)
        self.far.sendall(self._outgoing.read())

    def step(self) -> int:
        return handshake_bounds.shake_hands(self._address, self.near)

    def complete(self) -> None:
        """Complete the handshake; raise what the server says."""
        try:
            for _ in range(4):
                self.hear()
                if self.step() == openssl.COMPLETE:
                    return
            pytest.fail("the handshake does not end")
        finally:
            self.hear()


@contextlib.contextmanager
def finding_a_one(context: ssl.SSLContext) -> Iterator[None]:
    """Have the call back of *context* say nothing, and OpenSSL find a 1 where the answer should be."""
    address = openssl.address_of_context(context)
    says_nothing = verified_before.VerifyCallback(lambda *_: 1)
    openssl.library.SSL_CTX_set_cert_verify_callback(address, says_nothing, address)
    yield
    openssl.library.SSL_CTX_set_cert_verify_callback(address, verified_before._VERIFY, address)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sessions", [0, 100], ids=["tickets", "remembered sessions"])
def test_who_was_not_verified_is_refused_and_so_is_his_session(version: ssl.TLSVersion, sessions: int) -> None:
    context = server(version, sessions)
    with finding_a_one(context), Connection(context, STRANGER.pem) as connection:
        with pytest.raises(ssl.SSLCertVerificationError) as refused:
            connection.complete()
        assert (refused.value.verify_code, refused.value.reason) == (1, "CERTIFICATE_VERIFY_FAILED")
        assert code_of(refused.value) is RefusalCode.TLS_HANDSHAKE_FAILED
        session = connection.client.session
    with Connection(context, STRANGER.pem, session) as connection, pytest.raises(ssl.SSLError):
        connection.complete()
    with Connection(context, METER.pem) as connection:
        connection.complete()
        assert len(verified_path(connection.tls)) == 2
        session = connection.client.session
    with Connection(context, METER.pem, session) as connection:
        connection.complete()


def test_nor_is_he_let_in_at_the_operators_door() -> None:
    context = server()
    context.sslobject_class = PoliteHandshake
    with finding_a_one(context):
        _, side, _ = shake_hands(context, PKI.anchors, STRANGER.pem)
    with pytest.raises(ssl.SSLCertVerificationError):
        side.do_handshake()
    assert shake_hands(context, PKI.anchors, METER.pem)[0].path[0] == METER.der


def test_an_error_before_the_call_back_s_first_line_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is what happens to be on C's stack then."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    context, usual, depth = server(), sys.getrecursionlimit(), len(inspect.stack())
    context.sslobject_class = PoliteHandshake
    before_its_first_line = 0
    for more in range(1, 20):
        arriving, leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = client_of(STRANGER.pem).wrap_bio(leaving, arriving, server_hostname="localhost")
        side = context.wrap_bio(arriving, leaving, server_side=True)
        for each in (client, side, client):
            with contextlib.suppress(ssl.SSLWantReadError):
                each.do_handshake()
        refusal: Exception | None = None
        with contextlib.suppress(RecursionError):
            sys.setrecursionlimit(depth + more)
        try:
            side.do_handshake()
        except (ssl.SSLError, RecursionError, ctypes.ArgumentError) as error:
            refusal = error
        finally:
            sys.setrecursionlimit(usual)
        assert refusal is not None, f"let in, with {more} calls to go"
        if isinstance(refusal, ssl.SSLWantReadError):
            with pytest.raises(ssl.SSLCertVerificationError) as told:
                side.do_handshake()
            before_its_first_line += told.value.verify_code == 1
    assert before_its_first_line
    assert shake_hands(context, PKI.anchors, METER.pem)[0].path[0] == METER.der


def test_openssl_s_own_errors_are_its_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is not called back it takes what is below zero, as when memory is short, for a refusal."""
    monkeypatch.setattr(openssl.library, "X509_verify_cert", lambda _: -1)
    context = server()
    with Connection(context, METER.pem) as connection, pytest.raises(ssl.SSLCertVerificationError):
        connection.complete()
    assert not verified_before.remembered(context)


def test_an_error_while_an_error_is_told_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    """When memory is short, it is so for what tells that it is, too."""

    def fail(*_: object) -> int:
        raise MemoryError

    context = server()
    for what in ("X509_verify_cert", "X509_STORE_CTX_set_error"):
        monkeypatch.setattr(openssl.library, what, fail)
    with Connection(context, METER.pem) as connection, pytest.raises(ssl.SSLError, match="certificate verify failed"):
        connection.complete()
