"""How TLS begins, or does not: strangers, and those that come back, on OpenSSL's own object and on `ssl.SSLSocket`."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from broker.sockets.transport import TlsTransport
from provisioning.pki import hello_bounds
from provisioning.pki.handshake_bounds import PORTION
from provisioning.pki.resumption import forget_sessions
from provisioning.pki.tls import CredentialPem, client_context
from tests.support.client_hellos import X25519, hello
from tests.support.cut_records import cut, long_hello, unread
from tests.support.pki import Pki, shared_pki
from tests.support.tls_server import Server, Told, talk_and_keep, visit


@pytest.fixture
def pki() -> Pki:
    return shared_pki()


async def test_a_stranger_gets_the_alert(server: Server, pki: Pki) -> None:
    def read(connection: ssl.SSLSocket) -> str:
        try:
            connection.recv(100)
        except ssl.SSLError as error:
            return error.reason or ""
        return "no alert"

    stranger = Pki().device("meter-1")
    told, reason = await visit(server, client_context(pki.anchors, stranger.credential), read)
    assert reason == "TLSV1_ALERT_UNKNOWN_CA"
    assert told.ended.done()
    assert told.certificate is None


STRANGERS = Pki()


def says(*parts: bytes) -> Callable[[socket.socket, Pki], None]:
    return lambda raw, _: raw.sendall(b"".join(parts))


def leaves(raw: socket.socket, pki: Pki, *, reset: bool = False) -> None:
    """Begin a handshake, and leave in the middle of it."""
    outgoing = ssl.MemoryBIO()
    tls = client_context(pki.anchors, None).wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    raw.sendall(outgoing.read())
    raw.recv(65536)  # So it is in the middle now.
    if reset:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def shakes_hands(raw: socket.socket, anchors: str, credential: CredentialPem | None) -> None:
    context = client_context(anchors, credential)
    with contextlib.suppress(OSError), context.wrap_socket(raw, server_hostname="localhost") as secured:
        secured.recv(1)


@pytest.mark.parametrize(
    ("act", "code", "words"),
    [
        (says(b"GET / HTTP/1.1\r\n\r\n"), "NOT_TLS", "http request"),
        (says(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"), "NOT_TLS", "wrong version number"),
        (
            says(hello(groups=[X25519] * 1000)),
            "TLS_HANDSHAKE_FAILED",
            "the client's hello lists more than any client needs",
        ),
        (leaves, "TLS_HANDSHAKE_FAILED", "the peer has closed the connection"),
        (partial(leaves, reset=True), "TLS_HANDSHAKE_FAILED", "the connection was reset"),
        (
            lambda raw, pki: shakes_hands(raw, pki.anchors, None),
            "NO_CERTIFICATE",
            "peer did not return a certificate",
        ),
        (
            lambda raw, pki: shakes_hands(raw, pki.anchors, STRANGERS.device("meter-1").credential),
            "UNTRUSTED_ISSUER",
            "unable to get local issuer certificate",
        ),
        (
            lambda raw, pki: shakes_hands(raw, STRANGERS.anchors, pki.device("meter-1").credential),
            "BROKER_NOT_TRUSTED",
            "tlsv1 alert unknown ca",
        ),
    ],
    ids=["http", "mqtt", "long-list", "end", "reset", "nobody", "stranger", "alert"],
)
async def test_whoever_is_asked_says_the_same_of_a_handshake_that_failed(
    server: Server, pki: Pki, act: Callable[[socket.socket, Pki], None], code: str, words: str
) -> None:
    def client() -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
            act(raw, pki)

    visiting = asyncio.get_running_loop().run_in_executor(None, client)
    told = await server.accept()
    await visiting
    assert await asyncio.wait_for(told.ended, 30) == code
    assert told.detail == words
    # Nothing of it is left where the next session would look for its own errors.
    told, answer = await visit(
        server, client_context(pki.anchors, pki.device("meter-1").credential), lambda tls: (tls.send(b"a"), tls.recv(1))
    )
    assert answer[1] == b"A"


@pytest.fixture
def nobody_collects() -> Iterator[None]:
    """Let the garbage collector find no cycle, as in a broker, where it rarely looks at what is long-lived."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("nobody_collects")
@pytest.mark.parametrize(
    "act",
    [
        leaves,
        partial(leaves, reset=True),
        lambda raw, pki: shakes_hands(raw, pki.anchors, STRANGERS.device("meter-1").credential),
    ],
    ids=["end", "reset", "stranger"],
)
async def test_of_a_handshake_that_failed_nothing_is_kept(
    server: Server, pki: Pki, act: Callable[[socket.socket, Pki], None]
) -> None:
    """OpenSSL's session takes 40 KB, and whoever wants can begin a handshake."""

    def transports() -> int:
        return sum(isinstance(each, TlsTransport) for each in gc.get_objects())

    def client() -> None:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as raw:
            act(raw, pki)

    before, awaited = transports(), set(hello_bounds.awaited)
    visiting = asyncio.get_running_loop().run_in_executor(None, client)
    await asyncio.wait_for((await server.accept()).ended, 30)
    await visiting
    server.told = None
    async with asyncio.timeout(30):
        while transports() > before:
            await asyncio.sleep(0.05)
    assert set(hello_bounds.awaited) <= awaited


async def test_a_stranger_s_longest_hello_in_the_smallest_records_is_taken_in_portions(
    server: Server, pki: Pki
) -> None:
    if not server.ahead:
        pytest.skip("of a handshake only OpenSSL itself could be given a part")
    hello = cut(long_hello(client_context(pki.anchors), 8000))
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as stranger:
        stranger.sendall(hello)
        told = await server.accept()
        assert told.transport is not None
        left = len(hello)
        while left:
            told.transport.on_readable()  # As in one turn; the loop has none before the next.
            before, left = left, unread(told.transport._socket)
            assert before - left <= PORTION
        assert stranger.recv(1) == b"\x16", "the server's hello"
        told.transport.abort()


async def test_a_resumed_session_still_tells_the_certificate(server: Server, pki: Pki) -> None:
    meter = pki.device("meter-1")
    context = client_context(pki.anchors, meter.credential)

    def keep(connection: ssl.SSLSocket) -> ssl.SSLSession | None:
        connection.sendall(b"hello")
        connection.recv(100)  # The ticket comes before the answer.
        return connection.session

    _, session = await visit(server, context, keep)
    told, _ = await visit(server, context, keep, session)
    assert server.metrics.handshakes_resumed == 1
    assert told.certificate == meter.der
    assert told.path == []


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("end", ["nothing", "reset", "abort"])
async def test_who_vanished_comes_back_to_its_tls_session(
    server: Server, pki: Pki, version: ssl.TLSVersion, end: str
) -> None:
    context = client_context(pki.anchors, pki.device("meter-1").credential, allow_tls12=True)
    context.maximum_version = version

    def vanish(connection: ssl.SSLSocket) -> ssl.SSLSession | None:
        session = talk_and_keep(connection)
        if end == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif end == "abort":
            # It does not read the end: its own OpenSSL would forget a session that ended so, which Python 3.13 shows.
            connection.sendall(b"abort")
        return session

    told, session = await visit(server, context, vanish)
    await asyncio.wait_for(told.ended, 30)
    await visit(server, context, talk_and_keep, session)
    assert server.metrics.handshakes_resumed == 1


async def test_a_ticket_is_good_for_one_return_and_the_next_comes_with_it(server: Server, pki: Pki) -> None:
    context = client_context(pki.anchors, pki.device("meter-1").credential)
    _, first = await visit(server, context, talk_and_keep)
    _, second = await visit(server, context, talk_and_keep, first)
    await visit(server, context, talk_and_keep, first)
    once = server.remembers  # Encrypted copies are good until their key goes.
    assert server.metrics.handshakes_resumed == (1 if once else 2)
    await visit(server, context, talk_and_keep, second)
    assert server.metrics.handshakes_resumed == (2 if once else 3)
    assert server.context.session_stats()["number"] == (2 if once else 0)  # Four handed out, two used up.


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("end", [b"leave", b"abort"])
async def test_who_is_not_let_in_leaves_no_session_and_keeps_the_one_it_came_with(
    server: Server, pki: Pki, version: ssl.TLSVersion, end: bytes
) -> None:
    if not server.remembers:
        pytest.skip("a ticket that holds the session leaves nothing at the server")
    context = client_context(pki.anchors, pki.device("meter-1").credential, allow_tls12=True)
    context.maximum_version = version

    def is_refused(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"hello")
        assert connection.recv(100) == b"HELLO"
        connection.sendall(end)  # Nothing is read: the client's own OpenSSL would forget a session that ended badly.

    async def be_refused(session: ssl.SSLSession | None) -> None:
        server.admits = False
        told, _ = await visit(server, context, is_refused, session)
        await asyncio.wait_for(told.ended, 30) if end == b"abort" else None
        server.admits = True

    def kept() -> int:
        return server.context.session_stats()["number"]

    for _ in range(3):
        await be_refused(None)
        assert kept() == 0
    _, session = await visit(server, context, talk_and_keep)
    assert kept() == 1
    for _ in range(2):
        await be_refused(session)
        assert kept() == 1
    assert server.metrics.handshakes_resumed == 2
    await visit(server, context, talk_and_keep, session)
    assert server.metrics.handshakes_resumed == 3


async def test_nobody_comes_back_to_a_context_that_was_told_to_forget(server: Server, pki: Pki) -> None:
    context = client_context(pki.anchors, pki.device("meter-1").credential)
    _, session = await visit(server, context, talk_and_keep)
    forget_sessions(server.context)
    await visit(server, context, talk_and_keep, session)
    assert server.metrics.handshakes_completed == 2
    assert server.metrics.handshakes_resumed == (0 if server.remembers else 1)  # The copy is the client's.


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_what_only_the_handshake_needed_is_given_back(server: Server, pki: Pki, version: ssl.TLSVersion) -> None:
    meter = pki.device("meter-1")
    context = client_context(pki.anchors, meter.credential, allow_tls12=True)
    context.maximum_version = version
    seen: list[Any] = []

    def talk(connection: ssl.SSLSocket) -> None:
        talk_and_keep(connection)
        assert told_of is not None
        transport = told_of.transport
        assert transport is not None
        session: Any = transport._tls
        seen.extend(getattr(session, "_sslobj", session).get_unverified_chain())
        talk_and_keep(connection)

    told_of: Told | None = None
    accepting = server.accept

    async def accept() -> Told:
        nonlocal told_of
        told_of = await accepting()
        return told_of

    server.accept = accept  # type: ignore[method-assign]
    told, _ = await visit(server, context, talk)
    assert next(each.public_bytes(2) for each in seen) == meter.der
    assert len(seen) == (1 if server.ahead else 2)  # The client has sent its issuing CA along.
    assert len(told.path) > 1
