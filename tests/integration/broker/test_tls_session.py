"""TLS on OpenSSL's own object and on `ssl.SSLSocket`: a transport cannot tell them apart."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

import pytest

from broker import tls_session, transport
from broker.doze import Doze
from broker.metrics import Metrics
from broker.poller import Poller
from broker.tls_session import TlsSession, accept, open_public_tls, open_tls
from broker.transport import TlsTransport
from broker.turn import Turn
from provisioning.pki.openssl import forget_sessions
from provisioning.pki.tls import ClientCertificate, CredentialPem, client_context, server_context
from tests.support.broker_process import wait_until
from tests.support.key_updates import change_keys
from tests.support.noted_error import Bystander, leave_error
from tests.support.one_segment import OneSegmentClient
from tests.support.pki import Pki, shared_pki

Opener = Callable[[ssl.SSLContext, socket.socket], tuple[socket.socket, TlsSession]]


@dataclass
class Told:
    """What a transport told its receiver, which answers whatever it gets with the same in capitals."""

    transport: TlsTransport | None = None
    certificate: bytes | None = None
    path: list[bytes] = field(default_factory=list)
    received: bytes = b""
    holds_at: int = 0
    """After so many bytes the transport is held; 0: never."""
    held: asyncio.Event = field(default_factory=asyncio.Event)
    choked: threading.Event = field(default_factory=threading.Event)
    ended: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    detail: str = ""

    def secured(self, certificate: bytes | None, _now: float, _wall: datetime, path: Callable[[], Any]) -> None:
        self.certificate = certificate
        self.path = list(path())

    def receive(self, data: bytes, _now: float) -> None:
        self.received += data
        assert self.transport is not None
        if data == b"leave":
            self.transport.close()
        elif data == b"abort":
            self.transport.abort()
        elif data == b"flood":  # More than the kernel takes; of a socket that was reset it says that it takes more.
            self.transport.write([bytes(32 << 20)])
            assert self.transport.choked
            self.choked.set()
        elif self.holds_at and len(self.received) >= self.holds_at and not self.held.is_set():
            self.transport.hold()
            self.held.set()
            self.transport.write([data.upper()])
        else:
            self.transport.write([data.upper()])

    def lost(self, code: str, _now: float, detail: str = "") -> None:
        self.detail = detail
        self.ended.set_result(code)

    def choke(self, now: float) -> None: ...

    def unchoke(self, now: float) -> None: ...

    def drained(self, now: float) -> None: ...


class Server:
    """A listening socket whose connections are served by the transport, on TLS as *opener* opens it."""

    def __init__(self, opener: Opener, context: ssl.SSLContext) -> None:
        self.holds_at = 0
        self.ahead = True
        """Whether OpenSSL can be asked for what `ssl` does not offer."""
        self.context = context
        self._opener = opener
        loop = asyncio.get_running_loop()
        self._turn = Turn(loop.call_soon)
        self.poller = Poller(loop, self._turn)
        self.doze = Doze(loop, self._turn, self.poller, lambda: 0.01)
        self.metrics = Metrics()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.told: Told | None = None

    async def accept(self) -> Told:
        loop = asyncio.get_running_loop()
        self._listening.setblocking(False)
        accepted, address = await loop.sock_accept(self._listening)
        kept, tls = self._opener(self.context, accepted)
        told = self.told = Told(holds_at=self.holds_at)
        transport = TlsTransport(loop, kept, tls, address, self.metrics, self.poller, self._turn, 1 << 20)
        told.transport = transport
        transport.start(told)
        return told

    async def close(self) -> None:
        self._listening.close()
        await self.doze.drained(1.0)
        await self.poller.drained(1.0)


@pytest.fixture(
    params=[(open_tls, True), (open_public_tls, True), (open_tls, False), (open_public_tls, False)],
    ids=["inner", "public", "inner-record-by-record", "public-record-by-record"],
)
async def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    opener, ahead = request.param
    if not ahead:  # As where OpenSSL cannot be asked to.
        monkeypatch.setattr(transport, "read_ahead", lambda _session: 0)
    pki = shared_pki()
    context = server_context(
        pki.broker().credential,
        pki.anchors,
        client_certificate=ClientCertificate.REQUIRED,
        allow_tls12=True,
        remembered_sessions=100 if ahead else 0,
    )
    running = Server(opener, context)
    running.ahead = ahead
    yield running
    await running.close()


@pytest.fixture
def pki() -> Pki:
    return shared_pki()


async def visit(
    server: Server, context: ssl.SSLContext, act: Callable[[ssl.SSLSocket], Any], session: ssl.SSLSession | None = None
) -> tuple[Told, Any]:
    """Connect, let *act* use the connection in a thread; return what the server was told, and what *act* returned."""

    def client() -> Any:
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        with context.wrap_socket(raw, server_hostname="localhost", session=session) as secured:
            return act(secured)

    visiting = asyncio.get_running_loop().run_in_executor(None, client)
    told = await server.accept()
    return told, await visiting


RECORDS = [b"%04d" % number for number in range(300)]
"""More than a turn reads of one connection."""


async def test_records_that_came_in_one_piece_are_all_read(server: Server, pki: Pki) -> None:
    context = client_context(pki.anchors, pki.device("meter-1").credential)

    def send() -> bytes:
        with OneSegmentClient(server.port, context) as client:
            client.send([b"hello"])
            assert client.receive(5) == b"HELLO"
            client.send(RECORDS)
            return client.receive(4 * len(RECORDS))  # Nothing else is sent: no later byte wakes the server.

    sending = asyncio.get_running_loop().run_in_executor(None, send)
    await server.accept()
    assert await sending == b"".join(RECORDS)


async def test_what_comes_with_the_last_bytes_of_the_handshake_is_read(server: Server, pki: Pki) -> None:
    context = client_context(pki.anchors, pki.device("meter-1").credential)

    def send() -> bytes:
        with OneSegmentClient(server.port, context, RECORDS) as client:
            return client.receive(4 * len(RECORDS))

    sending = asyncio.get_running_loop().run_in_executor(None, send)
    await server.accept()
    assert await sending == b"".join(RECORDS)


async def test_what_waits_while_the_transport_is_held_is_read_when_it_is_released(server: Server, pki: Pki) -> None:
    context = client_context(pki.anchors, pki.device("meter-1").credential)
    server.holds_at = 40

    def send() -> bytes:
        with OneSegmentClient(server.port, context, RECORDS) as client:
            return client.receive(4 * len(RECORDS))

    sending = asyncio.get_running_loop().run_in_executor(None, send)
    told = await server.accept()
    await told.held.wait()
    for _ in range(5):  # Turns in which something could be read wrongly.
        await asyncio.sleep(0)
    assert len(told.received) == server.holds_at
    assert told.transport is not None
    told.transport.release()
    assert await sending == b"".join(RECORDS)


@pytest.mark.parametrize("size", [4, 447, 448, 449, 16384])
@pytest.mark.parametrize("holds", [False, True])
@pytest.mark.parametrize("dozes", [False, True])
async def test_all_is_read_of_a_peer_that_was_silent(
    server: Server, pki: Pki, size: int, *, holds: bool, dozes: bool
) -> None:
    loop = asyncio.get_running_loop()
    connecting = loop.run_in_executor(
        None, OneSegmentClient, server.port, client_context(pki.anchors, pki.device("meter-1").credential)
    )
    told = await server.accept()
    with await connecting as client:

        async def answers(*records: bytes) -> bytes:
            assert told.transport is not None
            told.transport._last_read = 0.0  # As if it had said nothing since the machine started.
            told.transport.settle(dozes=dozes)
            assert len(server.doze) == dozes
            await loop.run_in_executor(None, client.send, records)
            if told.holds_at:
                await told.held.wait()
                told.transport.release()
            return await loop.run_in_executor(None, client.receive, sum(map(len, records)))

        assert await answers(b"ping") == b"PING"  # After this one the transport reads ahead no more.
        assert await answers(b"ping") == b"PING"
        told.holds_at = holds and len(told.received) + 1
        record = b"r" * size
        assert await answers(record, *RECORDS) == b"".join([record, *RECORDS]).upper()
        assert await answers(record) == record.upper()


def test_this_python_has_the_inner_object() -> None:
    assert tls_session._WRAP is not None, "without it every connection costs more: see docs/decisions/0016"


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_what_is_accepted_is_what_the_library_would_accept(
    known: bool, family: socket.AddressFamily, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        monkeypatch.setattr(tls_session, "_ACCEPT", None)
    with (
        socket.create_server((host, 0), family=family) as listening,
        socket.create_connection(listening.getsockname()[:2]) as client,
    ):
        accepted, address = accept(listening)
        with accepted:
            assert (accepted.family, accepted.type, accepted.proto) == (family, socket.SOCK_STREAM, 0)
            assert accepted.gettimeout() == 0.0
            assert address == client.getsockname() == accepted.getpeername()
        listening.setblocking(False)
        with pytest.raises(BlockingIOError):
            accept(listening)


async def test_what_is_sent_is_answered_and_a_clean_end_is_one(server: Server, pki: Pki) -> None:
    meter = pki.device("meter-1")

    def talk(connection: ssl.SSLSocket) -> bytes:
        connection.sendall(b"hello")
        answer = connection.recv(100)
        with contextlib.suppress(ssl.SSLError, OSError):
            connection.unwrap()
        return answer

    told, answer = await visit(server, client_context(pki.anchors, meter.credential), talk)
    assert answer == b"HELLO"
    assert await asyncio.wait_for(told.ended, 30) == "CLIENT_CLOSED"
    assert told.certificate == meter.der
    assert told.path[0] == meter.der
    assert len(told.path) > 1


async def test_an_end_without_close_notify_is_an_end_too(server: Server, pki: Pki) -> None:
    def vanish(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"hello")
        connection.recv(100)
        connection.shutdown(socket.SHUT_RDWR)

    told, _ = await visit(server, client_context(pki.anchors, pki.device("meter-1").credential), vanish)
    assert await asyncio.wait_for(told.ended, 30) == "CLIENT_CLOSED"


async def reset(server: Server, pki: Pki, *last_words: bytes, unread: int = 5) -> Told:
    """Let a client send *last_words* that nobody reads yet, and leave without reading: the kernel resets it."""
    server.holds_at = 5

    def act(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"h" * unread)
        while b"H" not in connection.recv(1):
            pass
        for record in last_words:
            connection.sendall(record)
        connection.close()  # With bytes of the answer that were not read.

    told, _ = await visit(server, client_context(pki.anchors, pki.device("meter-1").credential), act)
    await told.held.wait()
    return told


async def test_what_a_client_said_before_it_reset_the_connection_is_heard_though_a_write_fails_first(
    server: Server, pki: Pki
) -> None:
    told = await reset(server, pki, *RECORDS)
    assert told.transport is not None
    told.transport.release()
    told.transport.write([b"to nobody"])  # Fails, before anything is read.
    told.transport.write([b"to nobody"])
    assert await asyncio.wait_for(told.ended, 30) == "CONNECTION_LOST"
    assert told.received == b"hhhhh" + b"".join(RECORDS)
    assert told.detail == "the connection was reset"


class Leaving:
    """A session in which what the system refuses leaves a note, as in Python 3.12.3 and later."""

    def __init__(self, session: TlsSession) -> None:
        self._session = session
        self.refused: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name not in self.refused:
            return getattr(self._session, name)
        leave_error()
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


@pytest.mark.parametrize("refused", ["write", "read", "shutdown"])
async def test_what_one_client_meets_is_not_thought_to_have_met_another(pki: Pki, refused: str) -> None:
    context = server_context(
        pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.REQUIRED, allow_tls12=True
    )
    client = client_context(pki.anchors, pki.device("meter-1").credential)
    bystander = Bystander(context, client)
    opened: list[Leaving] = []

    def opener(context: ssl.SSLContext, accepted: socket.socket) -> tuple[socket.socket, Any]:
        kept, session = open_tls(context, accepted)
        opened.append(Leaving(session))
        return kept, opened[0]

    server = Server(opener, context)

    def act(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"hello")
        assert connection.recv(5) == b"HELLO"
        opened[0].refused = {refused, "write", "read"} if refused == "write" else {refused}
        connection.sendall(b"leave" if refused == "shutdown" else b"hello")
        with contextlib.suppress(ConnectionResetError):  # Older versions of Python see an end in it.
            connection.recv(1)

    told, _ = await visit(server, client, act)
    if refused != "shutdown":
        assert await asyncio.wait_for(told.ended, 30) == "CONNECTION_LOST"
        assert told.detail == "the connection was reset"
    assert bystander.is_well()
    await server.close()


async def test_a_client_that_leaves_without_having_taken_what_was_sent_is_lost_too(server: Server, pki: Pki) -> None:
    def act(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"flood")
        assert server.told is not None
        assert server.told.choked.wait(30)
        connection.sendall(b"last words")
        connection.close()

    told, _ = await visit(server, client_context(pki.anchors, pki.device("meter-1").credential), act)
    assert told.transport is not None
    assert await asyncio.wait_for(told.ended, 30) == "CONNECTION_LOST"
    assert told.received == b"floodlast words"


async def test_what_a_client_has_taken_is_kept_no_longer(server: Server, pki: Pki) -> None:
    def act(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"flood")
        assert server.told is not None
        assert server.told.choked.wait(30)
        transport, left = server.told.transport, 24 << 20
        assert transport is not None
        assert transport.untaken > 30 << 20
        while left:
            left -= len(connection.recv(min(left, 1 << 16)))
        wait_until(lambda: transport.untaken < 9 << 20, "the rest alone waits")

    await visit(server, client_context(pki.anchors, pki.device("meter-1").credential), act)


def change_and_speak(connection: ssl.SSLSocket, times: int) -> bool:
    """Send so many KeyUpdate messages and a word; return whether it was answered."""
    try:
        connection.sendall(b"hello")
        if connection.recv(100) != b"HELLO":
            return False
        change_keys(connection, times)
        connection.sendall(b"again")
        return connection.recv(100) == b"AGAIN"
    except OSError:
        return False


async def test_a_client_may_change_its_keys_now_and_then_and_not_for_ever(server: Server, pki: Pki) -> None:
    """Whatever comes in one read is acted on before anybody else is served."""
    if not server.ahead:
        pytest.skip("of such messages only OpenSSL itself could tell")
    few, many = 10, 2000
    context = client_context(pki.anchors, pki.device("meter-1").credential)
    for times, code in ((few, "CLIENT_CLOSED"), (many, "CONNECTION_LOST"), (few, "CLIENT_CLOSED")):
        told, answered = await visit(server, context, partial(change_and_speak, times=times))
        assert answered is (times == few)
        assert await asyncio.wait_for(told.ended, 30) == code


async def test_two_clients_may_not_change_their_keys_for_ever_by_taking_turns(server: Server, pki: Pki) -> None:
    if not server.ahead:
        pytest.skip("of such messages only OpenSSL itself could tell")
    loop, context = asyncio.get_running_loop(), client_context(pki.anchors, pki.device("meter-1").credential)

    def take_turns(one: ssl.SSLSocket) -> int:
        accepted = asyncio.run_coroutine_threadsafe(server.accept(), loop)
        raw = socket.create_connection(("127.0.0.1", server.port), timeout=30)
        with context.wrap_socket(raw, server_hostname="localhost") as other:
            accepted.result(30)
            return sum(change_and_speak(each, 20) for _ in range(50) for each in (one, other))

    _, answers = await visit(server, context, take_turns)
    assert 2 <= answers < 20


async def test_the_server_says_goodbye(server: Server, pki: Pki) -> None:
    def wait(connection: ssl.SSLSocket) -> bytes:
        connection.suppress_ragged_eofs = False
        connection.sendall(b"leave")
        return connection.recv(100)  # Raises where the end comes without close_notify.

    _, end = await visit(server, client_context(pki.anchors, pki.device("meter-1").credential), wait)
    assert end == b""


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
    ids=["http", "mqtt", "end", "reset", "nobody", "stranger", "alert"],
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


def talk_and_keep(connection: ssl.SSLSocket) -> ssl.SSLSession | None:
    connection.sendall(b"hello")
    connection.recv(100)
    return connection.session


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
    once = server.ahead  # Encrypted copies are good until their key goes.
    assert server.metrics.handshakes_resumed == (1 if once else 2)
    await visit(server, context, talk_and_keep, second)
    assert server.metrics.handshakes_resumed == (2 if once else 3)
    assert server.context.session_stats()["number"] == (2 if once else 0)  # Four handed out, two used up.


async def test_nobody_comes_back_to_a_context_that_was_told_to_forget(server: Server, pki: Pki) -> None:
    context = client_context(pki.anchors, pki.device("meter-1").credential)
    _, session = await visit(server, context, talk_and_keep)
    forget_sessions(server.context)
    await visit(server, context, talk_and_keep, session)
    assert server.metrics.handshakes_completed == 2
    assert server.metrics.handshakes_resumed == (0 if server.ahead else 1)  # The copy is the client's.


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


async def test_more_than_a_record_arrives_whole(server: Server, pki: Pki) -> None:
    data = bytes(range(97, 123)) * 8000

    def send(connection: ssl.SSLSocket) -> bytes:
        answer = b""
        connection.sendall(data)
        while len(answer) < len(data):
            answer += connection.recv(1 << 16)
        return answer

    told, answer = await visit(server, client_context(pki.anchors, pki.device("meter-1").credential), send)
    assert answer == data.upper()
    assert told.received == data


async def test_a_set_that_is_closed_before_its_next_look_does_not_look() -> None:
    loop = asyncio.get_running_loop()
    failures: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: failures.append(context))
    poller = Poller(loop, Turn(loop.call_soon))
    poller.again(0)
    poller.close()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert failures == []
