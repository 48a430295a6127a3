"""Property: `openssl.read` returns and raises what `ssl` does, whatever the peer sends and however it ends.

Where the hot path is not compiled the broker does not use it: `make test-compiled` runs this again, without `ctypes`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.sockets.tls_refusal import words_of
from provisioning.pki import openssl
from provisioning.pki.openssl_library import RECORD, library
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.asking_client import BROKER, PKI
from tests.support.examples import examples

pytestmark = pytest.mark.skipif(not openssl.AVAILABLE, reason="OpenSSL cannot be called directly here")
SAYS_ALL = sys.version_info >= (3, 12, 3)
"""Before, `ssl` takes a reset for an end, or says nothing of it, and does not know all of OpenSSL's reasons."""
ENDS = ("stays", "goodbye", "ends", "bytes", "changed record", *(["resets"] if SAYS_ALL else []))
SERVERS = {
    remembered: server_context(
        BROKER.credential,
        PKI.anchors,
        client_certificate=ClientCertificate.OPTIONAL,
        allow_tls12=True,
        remembered_sessions=remembered,
    )
    for remembered in (0, 100)
}
CLIENTS = {version: client_context(PKI.anchors, None, allow_tls12=True) for version in ("TLSv1_2", "TLSv1_3")}
for version, context in CLIENTS.items():
    context.maximum_version = ssl.TLSVersion[version]


def by_method(session: Any) -> bytes | None:
    try:
        return bytes(session._sslobj.read(RECORD))
    except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return None


def directly(session: Any) -> bytes | None:
    return openssl.read(openssl.address_of(session))


def connected(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    near, far = socket.socketpair()
    accepted = server.wrap_socket(near, server_side=True, do_handshake_on_connect=False)
    connecting = client.wrap_socket(far, server_hostname="localhost", do_handshake_on_connect=False)
    for each in (accepted, connecting):
        each.setblocking(False)
    waiting = [connecting, accepted]
    while waiting:
        each = waiting.pop(0)
        try:
            each.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(each)
    return accepted, connecting


def send_raw(descriptor: int, data: bytes) -> None:
    """Send what TLS does not know of."""
    with socket.socket(fileno=os.dup(descriptor)) as raw:
        raw.sendall(data)


def told(
    read: Callable[[Any], bytes | None], records: list[bytes], end: str, remembered: int, version: str, *, ahead: bool
) -> list[object]:
    """Return what a server says that reads *records*, and after them the *end*."""
    accepted, connecting = connected(SERVERS[remembered], CLIENTS[version])
    heard: list[object] = []
    with accepted, connecting, contextlib.suppress(OSError):
        if ahead:
            openssl.read_on(openssl.address_of(accepted), ahead=True)
        for record in records:
            connecting.send(record)
        raw = connecting.fileno()
        if end == "goodbye":
            openssl.say_goodbye(connecting)
        elif end == "bytes":
            send_raw(raw, b"GET / HTTP/1.1\r\n\r\n")
        elif end == "changed record":
            send_raw(raw, b"\x17\x03\x03\x00\x20" + bytes(32))
        elif end == "ends":
            connecting.shutdown(socket.SHUT_WR)
        elif end == "resets":
            connecting.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connecting.close()
        for _ in range(len(records) + 3):
            try:
                data = read(accepted)
            except OSError as error:
                why = (getattr(error, "reason", None), words_of(error)) if SAYS_ALL else ()
                heard.append((type(error), error.errno, *why))
                openssl.forget_errors()
                break
            heard.append(data)
            if not data:
                break
    assert library.ERR_peek_last_error() == 0
    return heard


@examples(60)
@given(
    records=st.lists(st.one_of(st.binary(min_size=1, max_size=40), st.just(b"x" * RECORD)), max_size=4),
    end=st.sampled_from(ENDS),
    remembered=st.sampled_from(tuple(SERVERS)),
    version=st.sampled_from(tuple(CLIENTS)),
    ahead=st.booleans(),
)
def test_a_record_is_read_as_by_ssl(
    records: list[bytes], end: str, remembered: int, version: str, *, ahead: bool
) -> None:
    expected = told(by_method, records, end, remembered, version, ahead=ahead)
    assert told(directly, records, end, remembered, version, ahead=ahead) == expected
    if end == "stays":
        assert expected == [*records, None]
