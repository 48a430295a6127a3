"""Over real TLS, on a pair of connected sockets."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator

import pytest

from device_sim.link.buffered_socket import OUTPUT_LIMIT, BufferedSocket
from device_sim.link.closure import from_error
from provisioning.pki.role import Role
from provisioning.pki.tls import ClientCertificate, server_context
from tests.support.authority import Authority


@pytest.fixture
def pair() -> Iterator[tuple[BufferedSocket, ssl.SSLSocket]]:
    authority = Authority()
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)
    server = server_context(
        authority.issue("broker-1", role=Role.BROKER, group=None).pem,
        authority.pem,
        client_certificate=ClientCertificate.REQUIRED,
    ).wrap_socket(theirs, server_side=True, do_handshake_on_connect=False)
    client = (
        authority.issue("meter-1")
        .context(authority.pem)
        .wrap_socket(ours, server_hostname="localhost", do_handshake_on_connect=False)
    )
    for _ in range(4):
        for end in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    with client, server:
        yield BufferedSocket(client), server


def test_single_bytes_come_out_of_one_record(pair: tuple[BufferedSocket, ssl.SSLSocket]) -> None:
    buffered, server = pair
    server.send(b"abcdef")
    assert buffered.recv(1) == b"a"
    unread = [buffered.unread]
    assert [buffered.recv(2), buffered.recv(100)] == [b"bc", b"def"]
    assert [*unread, buffered.unread] == [True, False]
    with pytest.raises(ssl.SSLWantReadError):
        buffered.recv(1)


def test_what_is_written_in_one_turn_leaves_as_one_record(pair: tuple[BufferedSocket, ssl.SSLSocket]) -> None:
    buffered, server = pair
    for piece in (b"one", bytearray(b"two"), b"three"):
        assert buffered.send(piece) == len(piece)
    unsent = [buffered.unsent]
    buffered.flush()
    assert [*unsent, buffered.unsent] == [True, False]
    assert server.recv(16384) == b"onetwothree"


def test_output_is_bounded_and_continues_when_the_peer_reads(pair: tuple[BufferedSocket, ssl.SSLSocket]) -> None:
    buffered, server = pair
    piece = bytes(50_000)
    sent = 0
    for _ in range(100):
        try:
            sent += buffered.send(piece)
        except BlockingIOError:
            break
        buffered.flush()
    assert OUTPUT_LIMIT < sent < 10 * OUTPUT_LIMIT
    received = 0
    while received < sent:
        with contextlib.suppress(ssl.SSLWantReadError):
            while chunk := server.recv(16384):
                received += len(chunk)
        buffered.flush()
    assert not buffered.unsent
    assert received == sent


def test_a_failed_write_does_not_hide_what_the_peer_had_said(
    pair: tuple[BufferedSocket, ssl.SSLSocket],
) -> None:
    buffered, server = pair
    server.send(b"last words")
    server.close()
    buffered.send(b"x")
    buffered.flush()
    buffered.send(b"y")
    buffered.flush()
    assert buffered.recv(100) == b"last words"
    assert buffered.failed
    assert buffered.recv(100) == b""


def test_a_failed_write_is_told_when_the_peer_says_nothing(pair: tuple[BufferedSocket, ssl.SSLSocket]) -> None:
    buffered, _ = pair
    socket.socket.shutdown(buffered.tls, socket.SHUT_WR)
    buffered.send(b"x")
    buffered.flush()
    assert not buffered.unsent
    # OpenSSL 3 wraps the EPIPE of a write into an error of its own; newer versions of Python unwrap it again.
    with pytest.raises(OSError, match=r"SYS|Broken pipe") as failure:
        buffered.recv(100)
    assert from_error(failure.value, 0).code == "reset"


def test_closing_sends_what_is_queued_and_says_goodbye(pair: tuple[BufferedSocket, ssl.SSLSocket]) -> None:
    buffered, server = pair
    buffered.send(b"goodbye")
    buffered.close()
    assert server.recv(100) == b"goodbye"
    # close_notify is a clean end of the stream; its absence would raise SSLEOFError.
    server.suppress_ragged_eofs = False  # type: ignore[attr-defined]
    assert server.recv(100) == b""
