"""What is asked of OpenSSL directly, on this Python."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import ssl
import struct
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from broker.admission.refusal import RefusalCode
from broker.sockets.tls_refusal import code_of
from provisioning.pki import key_shown, openssl, resumed_exchange, resumption
from provisioning.pki.openssl_library import declare, library
from provisioning.pki.tls import ClientCertificate, Credential, client_context, server_context
from tests.support.asking_client import BROKER, PKI, Asking, served
from tests.support.ended_streams import IGNORES_ENDS
from tests.support.noted_error import Bystander, leave_error
from tests.support.pki import Pki, shared_device

GET_SESSION_CACHE_SIZE = 43
NAMES = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384")


def context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def tls13_suites(of: ssl.SSLContext) -> list[str]:
    return [each["name"] for each in of.get_ciphers() if each["protocol"] == "TLSv1.3"]


def test_this_python_lets_openssl_be_asked() -> None:
    assert openssl.AVAILABLE, "without it every handshake and every record costs more: see docs/decisions/0080"


def test_this_openssl_does_for_sessions_what_its_version_can() -> None:
    """Where it cannot, the tests of it are left out: that must not be for another reason."""
    remembers, has_ml_kem = ssl.OPENSSL_VERSION_INFO >= (3, 3), ssl.OPENSSL_VERSION_INFO >= (3, 5)
    assert key_shown.CAN_NOTE
    assert remembers is resumption.CAN_REMEMBER
    assert remembers is resumed_exchange.CAN_LIMIT
    assert has_ml_kem is resumed_exchange.CAN_EXCHANGE_LESS


@pytest.mark.parametrize("available", [True, False])
def test_what_is_noted_of_an_error_can_be_forgotten(monkeypatch: pytest.MonkeyPatch, *, available: bool) -> None:
    monkeypatch.setattr(openssl, "AVAILABLE", available)
    server = server_context(
        BROKER.credential, PKI.anchors, client_certificate=ClientCertificate.OPTIONAL, allow_tls12=True
    )
    bystander = Bystander(server, client_context(PKI.anchors, None))
    for _ in range(2):
        leave_error()
        # From 4.0 on OpenSSL does not judge a call by what was there before.
        assert bystander.is_well() is (ssl.OPENSSL_VERSION_INFO >= (4, 0)), "if it were, there is nothing to forget"
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


@pytest.mark.skipif(not resumption.CAN_REMEMBER, reason="an OpenSSL that lets remembered sessions pile up")
def test_so_many_sessions_are_remembered_and_no_tickets_are_handed_out() -> None:
    fresh = context()
    resumption.remember_sessions(fresh, 7)
    address = openssl.address_of_context(fresh)
    assert library.SSL_CTX_ctrl(address, GET_SESSION_CACHE_SIZE, 0, None) == 7
    assert fresh.num_tickets == 0
    assert ssl.OP_NO_TICKET in fresh.options


def test_only_sessions_of_the_standard_library_are_known() -> None:
    inside = context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    address = openssl.address_of(inside)
    assert address != 0
    assert openssl.has_pending(address) == 0
    assert openssl.address_of(object()) == 0


def test_where_openssl_cannot_be_asked_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openssl, "AVAILABLE", False)
    fresh = context()
    before = tls13_suites(fresh)
    if not hasattr(fresh, "set_ciphersuites"):
        assert not openssl.prefer(fresh, NAMES)
        assert tls13_suites(fresh) == before
    assert openssl.address_of(fresh.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)) == 0


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
        if not library.SSL_ctrl(asking.server_address, openssl._GET_PEER_TMP_KEY, 0, ctypes.addressof(held)):
            return 0
        declare("EVP_PKEY_get_raw_public_key", ctypes.c_int, [ctypes.c_void_p] * 3)
        is_there = library.EVP_PKEY_get_raw_public_key(held, kept, ctypes.byref(size))
        library.EVP_PKEY_free(held.value)
        return size.value if is_there else 0

    assert sent_along() == 2
    assert (key_of_the_exchange() > 0) is (version is ssl.TLSVersion.TLSv1_3)  # For 1.2 OpenSSL keeps none.
    openssl.forget_handshake(asking.server_address, resumed=False)
    assert (sent_along(), key_of_the_exchange()) == (1, 0)
    assert asking.server.getpeercert(binary_form=True) == device.der


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
    outcome = openssl.shake_hands(openssl.address_of(session))
    assert outcome == openssl.WANTS_READ


@pytest.mark.parametrize("credential", [None, Pki().device("meter-1").credential], ids=["none", "another's"])
def test_a_refusal_is_the_one_that_ssl_raises_and_leaves_nothing_for_the_next_session(
    credential: Credential | None,
) -> None:
    expected = refused(credential, lambda session: session.do_handshake())
    assert refused(credential, shake_hands_directly) == expected
    assert library.ERR_peek_last_error() == 0


def lost(shake_hands: Callable[[Any], object], *, resets: bool, remembered_sessions: int) -> tuple[object, ...]:
    """Return what a server says of a client that leaves in the middle of its handshake."""
    server = server_context(
        BROKER.credential,
        PKI.anchors,
        client_certificate=ClientCertificate.REQUIRED,
        remembered_sessions=remembered_sessions,
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    with client, server.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False) as session:
        if resets:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        try:
            shake_hands(session)
        except OSError as error:
            return type(error), error.errno, getattr(error, "reason", None)
    raise AssertionError("it was let in")


@pytest.mark.parametrize("remembered_sessions", [0, 100], ids=["ends", "ignores ends"])
@pytest.mark.parametrize("resets", [True, False])
def test_whether_a_client_has_left_or_its_connection_was_reset_is_said_as_ssl_says_it(
    *, resets: bool, remembered_sessions: int
) -> None:
    how: Any = {"resets": resets, "remembered_sessions": remembered_sessions}
    expected = lost(lambda session: session.do_handshake(), **how)
    ignored = IGNORES_ENDS or (remembered_sessions and resumption.CAN_REMEMBER)
    ended = ssl.SSLZeroReturnError if ignored else ssl.SSLEOFError
    assert expected[0] is (ConnectionResetError if resets else ended)
    assert lost(shake_hands_directly, **how) == expected
    assert library.ERR_peek_last_error() == 0


def test_a_handshake_that_has_no_room_for_its_answer_waits_to_write() -> None:
    accepted, connected = socket.socketpair()
    told, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(PKI.anchors, None).wrap_bio(told, to_send, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    accepted.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while accepted.send(b"x" * 65_536):
            pass
    with connected, served().wrap_socket(accepted, server_side=True, do_handshake_on_connect=False) as session:
        connected.sendall(to_send.read())
        assert openssl.shake_hands(openssl.address_of(session)) == openssl.WANTS_WRITE


@pytest.mark.parametrize(("known", "available"), [(True, True), (False, True), (False, False)])
def test_a_goodbye_is_said_after_a_handshake_and_before_it_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, *, known: bool, available: bool
) -> None:
    asking = Asking(served())
    address = asking.server_address if known else 0
    monkeypatch.setattr(openssl, "AVAILABLE", available)
    assert not openssl.say_goodbye(asking.server, address), "its handshake was never begun"
    assert library.ERR_peek_last_error() == 0
    monkeypatch.undo()
    asking = Asking(served())
    asking.shake_hands()
    monkeypatch.setattr(openssl, "AVAILABLE", available)
    assert openssl.say_goodbye(asking.server, asking.server_address if known else 0) is known
    assert library.ERR_peek_last_error() == 0


def test_a_socket_that_is_closed_says_no_goodbye() -> None:
    one, other = socket.socketpair()
    with other:
        session = served().wrap_socket(one, server_side=True, do_handshake_on_connect=False)
        session.close()
        assert not openssl.say_goodbye(session)


def test_of_a_client_that_does_not_believe_us_the_same_is_said_as_by_ssl() -> None:
    """The broker's stable code comes from this reason."""
    expired = PKI.broker(not_before=PKI.now - timedelta(days=2), not_after=PKI.now - timedelta(days=1))

    def told(shake_hands: Callable[[Any], object]) -> str:
        server = server_context(expired.credential, PKI.anchors, client_certificate=ClientCertificate.REQUIRED)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        asking = client_context(PKI.anchors, None).wrap_bio(to_client, to_server, server_hostname="localhost")
        asked = server.wrap_bio(to_server, to_client, server_side=True)
        with pytest.raises(ssl.SSLWantReadError):
            asking.do_handshake()
        with contextlib.suppress(ssl.SSLWantReadError):
            shake_hands(asked)
        with pytest.raises(ssl.SSLCertVerificationError):
            asking.do_handshake()
        with pytest.raises(ssl.SSLError) as raised:
            shake_hands(asked)
        assert code_of(raised.value) is RefusalCode.BROKER_NOT_TRUSTED
        return raised.value.reason

    assert told(shake_hands_directly) == "SSLV3_ALERT_CERTIFICATE_EXPIRED"
    # `ssl` has the names of the headers with which it was built: those of 4.0 are others.
    assert told(lambda session: session.do_handshake()).endswith("_ALERT_CERTIFICATE_EXPIRED")
