"""A stranger's handshake in portions, on real sockets: what OpenSSL is given, and what is left for it."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import pytest

from provisioning.pki import handshake_bounds, hello_bounds, openssl
from provisioning.pki.handshake_bounds import MOST_CHAIN, PORTION
from provisioning.pki.hello_bounds import SMALL
from provisioning.pki.openssl_library import frequent, library
from provisioning.pki.tls import ClientCertificate, CredentialPem, client_context, server_context
from tests.support.client_hellos import (
    ILLEGAL_PARAMETER,
    P256,
    RETRY,
    X25519,
    answer_of,
    certificates_12,
    hello,
    hello_12,
    numbers,
    sized,
)
from tests.support.cut_records import cut, long_hello, unread
from tests.support.ended_streams import IGNORES_ENDS
from tests.support.pki import shared_device, shared_pki
from tests.unit.provisioning.pki.test_named_curves import OWN

PKI = shared_pki()
BROKER = PKI.broker()


class Pair:
    """A server's side of TLS on a socket, and the socket at the other end."""

    def __init__(self) -> None:
        self.context = server_context(
            BROKER.credential, PKI.anchors, client_certificate=ClientCertificate.REQUIRED, allow_tls12=True
        )
        with socket.create_server(("127.0.0.1", 0)) as listening:
            self.far = socket.create_connection(listening.getsockname())
            self.near, _ = listening.accept()
        self.near.setblocking(False)
        self.tls = self.context.wrap_socket(self.near.dup(), server_side=True, do_handshake_on_connect=False)
        self.tls.setblocking(False)
        self.address = openssl.address_of(self.tls)
        handshake_bounds.begin(self.address)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()

    def step(self) -> int:
        outcome = handshake_bounds.shake_hands(self.address, self.near)
        assert library.BIO_ctrl(handshake_bounds._portion, handshake_bounds._PENDING, 0, 0) == 0
        assert not handshake_bounds._buffer.filled
        assert not hello_bounds.step.small
        return outcome

    def client(self, credential: CredentialPem | None, version: ssl.TLSVersion) -> ssl.SSLObject:
        context = client_context(PKI.anchors, credential, allow_tls12=True)
        context.maximum_version = version
        return context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    def close(self) -> None:
        for each in (self.tls, self.near, self.far):
            each.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    try:
        yield made
    finally:
        made.close()


def test_a_step_takes_no_more_than_a_portion_however_much_is_there(pair: Pair) -> None:
    sent = cut(long_hello(client_context(PKI.anchors), 8000))
    pair.far.sendall(sent)
    for taken in range(PORTION, len(sent), PORTION):
        assert pair.step() == openssl.WANTS_READ
        assert unread(pair.near) == len(sent) - taken
        assert unread(pair.far) == 0
    assert pair.step() == openssl.WANTS_READ
    assert unread(pair.near) == 0
    assert pair.far.recv(3)[:1] == b"\x16", "the server's hello"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_what_comes_behind_the_handshake_is_there_when_it_is_complete(pair: Pair, version: ssl.TLSVersion) -> None:
    client = pair.client(shared_device("meter-1").credential, version)
    outcome, done = openssl.WANTS_READ, False
    while outcome != openssl.COMPLETE:
        if not done:
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
                done = True
                if version is ssl.TLSVersion.TLSv1_3:
                    client.write(b"at once")
        pair.far.sendall(pair.outgoing.read())
        outcome = pair.step()
        with contextlib.suppress(BlockingIOError):
            pair.incoming.write(pair.far.recv(65536, socket.MSG_DONTWAIT))
    if version is ssl.TLSVersion.TLSv1_2:  # There the server has the last word.
        client.do_handshake()
        client.write(b"at once")
        pair.far.sendall(pair.outgoing.read())
    assert pair.tls.recv(100) == b"at once"
    assert pair.tls.getpeercert(binary_form=True) == shared_device("meter-1").der
    pair.tls.send(b"answer")
    pair.incoming.write(pair.far.recv(65536))
    assert client.read(100) == b"answer"


def test_the_end_and_a_wait_are_what_they_were(pair: Pair) -> None:
    assert pair.step() == openssl.WANTS_READ
    pair.far.sendall(b"\x16\x03\x01")
    assert pair.step() == openssl.WANTS_READ
    pair.far.close()
    with pytest.raises(
        ssl.SSLZeroReturnError if IGNORES_ENDS else ssl.SSLEOFError, match="the peer has closed the connection"
    ):
        pair.step()


def test_one_session_s_bytes_are_never_another_s(pair: Pair) -> None:
    """What OpenSSL leaves of a portion, here behind a record that is none, is forgotten."""
    other = Pair()
    try:
        pair.far.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        with pytest.raises(ssl.SSLError):
            pair.step()
        assert other.step() == openssl.WANTS_READ
        other.far.sendall(long_hello(client_context(PKI.anchors), 2000))
        assert other.step() == openssl.WANTS_READ
        assert other.far.recv(3)[:1] == b"\x16"
    finally:
        other.close()


def test_what_a_step_without_memory_leaves_is_never_another_s(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Pair()
    try:
        pair.far.sendall(b"GET / HTTP/1.1\r\n\r\n" * 10)
        with monkeypatch.context() as short:
            emptying = frequent.BIO_ctrl

            def fail(*_arguments: object) -> int:
                raise MemoryError

            short.setattr(frequent, "BIO_ctrl", fail)
            with pytest.raises(MemoryError):
                pair.step()
        assert frequent.BIO_ctrl is emptying
        other.far.sendall(long_hello(client_context(PKI.anchors), 2000))
        assert other.step() == openssl.WANTS_READ
        assert other.far.recv(3)[:1] == b"\x16"
    finally:
        other.close()


def test_what_openssl_has_no_memory_for_is_not_consumed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    hello = long_hello(client_context(PKI.anchors), 2000)
    pair.far.sendall(hello)
    with monkeypatch.context() as short:
        short.setattr(frequent, "BIO_write", lambda *_: -1)
        with pytest.raises(MemoryError):
            pair.step()
    assert unread(pair.near) == len(hello)
    assert pair.step() == openssl.WANTS_READ
    assert pair.far.recv(3)[:1] == b"\x16"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_certification_path_has_a_bound(pair: Pair, version: ssl.TLSVersion) -> None:
    meter = shared_device("meter-1")
    whole = meter.pem[meter.pem.index(b"-----BEGIN CERT") :]
    certificates = MOST_CHAIN // len(meter.der) + 1
    client = pair.client(CredentialPem(meter.pem + whole * certificates), version)

    def talk() -> None:
        for _ in range(4):
            with contextlib.suppress(ssl.SSLWantReadError):
                client.do_handshake()
            pair.far.sendall(pair.outgoing.read())
            pair.step()
            with contextlib.suppress(BlockingIOError):
                pair.incoming.write(pair.far.recv(65536, socket.MSG_DONTWAIT))

    with pytest.raises(ssl.SSLError, match="excessive message size"):
        talk()


def test_a_certificate_that_takes_long_to_read_is_refused_in_its_step(pair: Pair) -> None:
    pair.far.sendall(hello_12())
    assert pair.step() == openssl.WANTS_READ
    pair.far.sendall(certificates_12([OWN]))
    with pytest.raises(ssl.SSLError, match="length mismatch"):
        pair.step()


def test_so_is_one_that_comes_at_once_with_the_hello(pair: Pair) -> None:
    """As TLS 1.2 permits: it needs nothing that the server has said."""
    pair.far.sendall(hello_12() + certificates_12([OWN]))
    with pytest.raises(ssl.SSLError, match="length mismatch"):
        pair.step()


TOO_LONG = hello(groups=[0x9000] * 20_000)


def hello_of(size: int) -> bytes:
    """Return the record of a hello of so many bytes with too many groups."""
    groups = [X25519, *[0x9000] * 300]
    left = size - len(hello(numbers(0xFAFA) + sized(b""), groups=groups))
    return hello(numbers(0xFAFA) + sized(bytes(left)), groups=groups)


@pytest.mark.parametrize("before", [0, 1, SMALL - 1])
@pytest.mark.parametrize("size", [SMALL, SMALL + 1])
def test_a_hello_in_few_bytes_is_not_looked_into(pair: Pair, size: int, before: int) -> None:
    sent = hello_of(size)
    assert len(sent) == size
    if before:
        pair.far.sendall(sent[:before])
        assert pair.step() == openssl.WANTS_READ
    assert pair.address in hello_bounds.awaited
    pair.far.sendall(sent[before:])
    if size > SMALL:
        with pytest.raises(ssl.SSLError) as refused:
            pair.step()
        assert refused.value.reason == hello_bounds.REFUSED
    else:
        assert pair.step() == openssl.WANTS_READ
        assert pair.far.recv(3)[:1] == b"\x16"
    assert pair.address not in hello_bounds.awaited


@pytest.mark.parametrize("first", [b"", hello(groups=[X25519, P256], shares=[])], ids=["first", "asked for again"])
def test_a_long_one_is_refused_in_whatever_step_it_is_whole(pair: Pair, first: bytes) -> None:
    if first:
        pair.far.sendall(first)
        assert pair.step() == openssl.WANTS_READ
        assert RETRY in pair.far.recv(1000)
    pair.far.sendall(TOO_LONG)
    for _ in range(len(TOO_LONG) // PORTION):
        assert pair.step() == openssl.WANTS_READ
    with pytest.raises(ssl.SSLError) as refused:
        pair.step()
    assert refused.value.reason == hello_bounds.REFUSED


def test_what_one_session_was_given_says_nothing_of_another(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of one that another thread serves meanwhile, nor of one at the address of a session that fell silent."""
    monkeypatch.setattr(hello_bounds.step, "small", pair.address)
    assert answer_of(pair.context, TOO_LONG) == ILLEGAL_PARAMETER
    monkeypatch.setattr(hello_bounds.step, "small", 0)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    other = pair.context.wrap_bio(incoming, outgoing, server_side=True)
    hello_bounds.awaited[openssl.address_of(other)] = 0
    incoming.write(TOO_LONG)
    with pytest.raises(ssl.SSLError):
        other.do_handshake()
    assert outgoing.read() == ILLEGAL_PARAMETER
