"""What is asked of OpenSSL directly, on this Python."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from provisioning.pki import openssl
from provisioning.pki.tls import ClientCertificate, Credential, client_context, server_context
from tests.support.noted_error import Bystander, leave_error
from tests.support.pki import Pki, shared_device, shared_pki

PKI = shared_pki()
BROKER = PKI.broker()
SET_STATUS_TYPE, GET_STATUS_RESPONSE = 65, 70
GET_SESSION_CACHE_SIZE = 43
NAMES = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384")


def context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def tls13_suites(of: ssl.SSLContext) -> list[str]:
    return [each["name"] for each in of.get_ciphers() if each["protocol"] == "TLSv1.3"]


def test_this_python_lets_openssl_be_asked() -> None:
    assert openssl.AVAILABLE, "without it every handshake and every record costs more: see docs/decisions/0080"


@pytest.mark.parametrize("available", [True, False])
def test_what_is_noted_of_an_error_can_be_forgotten(monkeypatch: pytest.MonkeyPatch, *, available: bool) -> None:
    monkeypatch.setattr(openssl, "AVAILABLE", available)
    server = server_context(
        BROKER.credential, PKI.anchors, client_certificate=ClientCertificate.OPTIONAL, allow_tls12=True
    )
    bystander = Bystander(server, client_context(PKI.anchors, None))
    for _ in range(2):
        leave_error()
        assert not bystander.is_well(), "if it were, there would be nothing to forget"
        leave_error()
        openssl.forget_errors()
        assert bystander.is_well()


def test_suites_are_offered_in_the_order_that_is_preferred_and_no_others() -> None:
    fresh = context()
    assert openssl.prefer(fresh, NAMES)
    assert tls13_suites(fresh) == list(NAMES)
    assert openssl.prefer(fresh, NAMES[::-1])
    assert tls13_suites(fresh) == list(NAMES[::-1])


def test_an_unknown_suite_changes_nothing() -> None:
    fresh = context()
    before = tls13_suites(fresh)
    assert not openssl.prefer(fresh, ("TLS_NO_SUCH_SUITE",))
    assert tls13_suites(fresh) == before


@pytest.mark.skipif(not openssl.CAN_REMEMBER, reason="an OpenSSL that lets remembered sessions pile up")
def test_so_many_sessions_are_remembered_and_no_tickets_are_handed_out() -> None:
    fresh = context()
    openssl.remember_sessions(fresh, 7)
    address = openssl._word(fresh, openssl._CONTEXT)
    assert openssl._library.SSL_CTX_ctrl(address, GET_SESSION_CACHE_SIZE, 0, None) == 7
    assert fresh.num_tickets == 0
    assert ssl.OP_NO_TICKET in fresh.options


def test_only_sessions_of_the_standard_library_read_ahead() -> None:
    inside = context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    assert openssl.read_ahead(inside) != 0
    assert openssl.has_pending(openssl.read_ahead(inside)) == 0
    assert openssl.read_ahead(object()) == 0


def test_where_openssl_cannot_be_asked_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssl, "AVAILABLE", False)
    fresh = context()
    before = tls13_suites(fresh)
    if not hasattr(fresh, "set_ciphersuites"):
        assert not openssl.prefer(fresh, NAMES)
        assert tls13_suites(fresh) == before
    assert openssl.read_ahead(fresh.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)) == 0
    # Nor is anything believed of a session that nobody can ask about.
    asking = Asking(served(), version=ssl.TLSVersion.TLSv1_2)
    asking.shake_hands()
    assert not openssl.has_extended_master_secret(asking.server)
    monkeypatch.undo()
    assert openssl.has_extended_master_secret(asking.server)


class Asking:
    """A client in memory that asks a server's context for the staple."""

    def __init__(
        self,
        server: ssl.SSLContext,
        *,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        credential: Credential | None = None,
    ) -> None:
        trusting = client_context(PKI.anchors, credential, allow_tls12=True)
        trusting.maximum_version = version
        self._pipes = [ssl.MemoryBIO() for _ in range(2)]
        to_server, to_client = self._pipes
        self.client: Any = trusting.wrap_bio(to_client, to_server, server_hostname="localhost")
        self.server: Any = server.wrap_bio(to_server, to_client, server_side=True)
        openssl._library.SSL_ctrl(self._address(self.client), SET_STATUS_TYPE, 1, None)

    def shake_hands(self) -> bytes | None:
        """Return the staple that the client was given."""
        waiting = [self.client, self.server]
        while waiting:
            for each in list(waiting):
                try:
                    each.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                waiting.remove(each)
        return self.stapled(self.client)

    def stapled(self, side: Any) -> bytes | None:
        """Return what that side holds."""
        held = ctypes.c_void_p()
        size = openssl._library.SSL_ctrl(self._address(side), GET_STATUS_RESPONSE, 0, ctypes.byref(held))
        return None if not held.value else ctypes.string_at(held.value, size)

    @property
    def server_address(self) -> int:
        return self._address(self.server)

    def _address(self, side: Any) -> int:
        return openssl._word(side._sslobj, openssl._SESSION)


def served() -> ssl.SSLContext:
    return server_context(
        BROKER.credential, PKI.anchors, client_certificate=ClientCertificate.OPTIONAL, allow_tls12=True
    )


def later() -> float:
    return time.time() + 60


def test_a_context_tells_its_certificate() -> None:
    assert openssl.own_certificate(served()) == BROKER.der
    assert openssl.own_certificate(context()) == b""


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_who_asks_is_handed_the_staple_and_the_server_keeps_no_copy(version: ssl.TLSVersion) -> None:
    server, response = served(), bytes(range(256)) * 8
    assert openssl.staple(server, response, later())
    asking = Asking(server, version=version)
    assert asking.shake_hands() == response
    assert asking.stapled(asking.server) == response
    openssl.forget_handshake(asking.server_address, resumed=False)
    assert asking.stapled(asking.server) is None
    assert openssl.staple(server, b"another", later())
    assert Asking(server, version=version).shake_hands() == b"another"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_of_a_handshake_the_client_s_own_certificate_is_kept_and_no_more(version: ssl.TLSVersion) -> None:
    device = shared_device("meter-1")
    asking = Asking(served(), version=version, credential=device.credential)
    asking.shake_hands()

    def sent_along() -> int:
        return len(asking.server._sslobj.get_unverified_chain() or ())

    def key_of_the_exchange() -> int:
        """Return how many bytes of the client's share are kept."""
        held, kept, size = ctypes.c_void_p(), ctypes.create_string_buffer(4096), ctypes.c_size_t(4096)
        if not openssl._library.SSL_ctrl(asking.server_address, openssl._GET_PEER_TMP_KEY, 0, ctypes.byref(held)):
            return 0
        is_there = openssl._library.EVP_PKEY_get_raw_public_key(held, kept, ctypes.byref(size))
        openssl._library.EVP_PKEY_free(held)
        return size.value if is_there else 0

    assert sent_along() == 2
    assert (key_of_the_exchange() > 0) is (version is ssl.TLSVersion.TLSv1_3)  # For 1.2 OpenSSL keeps none.
    openssl.forget_handshake(asking.server_address, resumed=False)
    assert (sent_along(), key_of_the_exchange()) == (1, 0)
    assert asking.server.getpeercert(binary_form=True) == device.der


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_what_has_ended_or_is_empty_is_not_stapled(version: ssl.TLSVersion) -> None:
    server = served()
    assert Asking(server, version=version).shake_hands() is None
    for response, until in ((b"ended", time.time() - 1), (b"", later())):
        assert openssl.staple(server, response, until)
        assert Asking(server, version=version).shake_hands() is None


def test_each_context_has_its_own_staple_and_takes_it_away_when_it_goes() -> None:
    one, other = served(), served()
    openssl.staple(one, b"one", later())
    openssl.staple(other, b"other", later())
    before = len(openssl._staples)
    asking = Asking(one)
    del one
    gc.collect()
    assert asking.shake_hands() == b"one", "a connection keeps its context"
    del asking
    gc.collect()
    assert len(openssl._staples) == before - 1
    assert Asking(other).shake_hands() == b"other"


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_a_defect_costs_the_staple_and_not_the_handshake(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    server = served()
    openssl.staple(server, b"staple", later())

    def fail() -> float:
        raise error

    monkeypatch.setattr(openssl.time, "time", fail)
    assert Asking(server).shake_hands() is None


def test_where_openssl_cannot_call_back_nothing_is_stapled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssl, "_STATUS_CALLBACK", None)
    server = served()
    assert not openssl.staple(server, b"staple", later())
    assert Asking(server).shake_hands() is None
    monkeypatch.setattr(openssl, "AVAILABLE", False)
    assert openssl.own_certificate(server) == b""


def test_many_threads_shake_hands_while_the_staple_changes() -> None:
    server = served()
    responses = [bytes([number]) * 1000 for number in range(64)]
    openssl.staple(server, responses[0], later())

    def visit(number: int) -> bool:
        openssl.staple(server, responses[number], later())
        return Asking(server).shake_hands() in responses

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(visit, range(64)))


def refused(credential: Credential | None, shake_hands: Callable[[Any], object]) -> tuple[object, ...]:
    """Return what a server says of a client with *credential*, who is not let in."""
    server = server_context(BROKER.credential, PKI.anchors, client_certificate=ClientCertificate.REQUIRED)
    client = client_context(PKI.anchors, credential)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking: Any = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    asked: Any = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(2):
        with contextlib.suppress(ssl.SSLWantReadError):
            asking.do_handshake()
        try:
            shake_hands(asked)
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            verified = (getattr(error, name, None) for name in ("verify_code", "verify_message"))
            return type(error), error.reason, *verified
    raise AssertionError("it was let in")


def shake_hands_directly(session: Any) -> None:
    outcome = openssl.shake_hands(openssl._word(session._sslobj, openssl._SESSION))
    assert outcome == openssl.WANTS_READ


@pytest.mark.parametrize("credential", [None, Pki().device("meter-1").credential], ids=["none", "another's"])
def test_a_refusal_is_the_one_that_ssl_raises_and_leaves_nothing_for_the_next_session(
    credential: Credential | None,
) -> None:
    expected = refused(credential, lambda session: session.do_handshake())
    assert refused(credential, shake_hands_directly) == expected
    assert openssl._library.ERR_peek_last_error() == 0
