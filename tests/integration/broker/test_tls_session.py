"""TLS on OpenSSL's own object and on `ssl.SSLSocket`: a transport cannot tell them apart."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import struct
from functools import partial
from typing import Any

import pytest

from broker.sockets import tls_session
from broker.sockets.poller import Poller
from broker.sockets.tls_session import TlsSession, accept, open_public_tls, open_tls, shake_hands
from broker.sockets.turn import Turn
from provisioning.pki import openssl
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.broker_process import wait_until
from tests.support.ended_streams import IGNORES_ENDS
from tests.support.key_updates import change_keys
from tests.support.noted_error import Bystander, leave_error
from tests.support.one_segment import OneSegmentClient
from tests.support.pki import Pki, pem_of, shared_pki
from tests.support.tls_server import Opener, Server, Told, talk_and_keep, visit


@pytest.fixture
def pki() -> Pki:
    return shared_pki()


RECORDS = [b"%04d" % number for number in range(300)]
READS_AFTER_A_FAILED_WRITE = ssl.OPENSSL_VERSION_INFO < (4, 0)
"""Whether OpenSSL gives out what has arrived when the system has refused a write: docs/decisions/0332."""
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


async def test_last_words_close_notify_and_the_end_are_one_segment(server: Server, pki: Pki) -> None:
    context = client_context(pki.anchors, pki.device("meter-1").credential)

    def visit_until_the_end() -> tuple[bytes, int]:
        with OneSegmentClient(server.port, context) as client:
            client.send([b"hello"])
            assert client.receive(5) == b"HELLO"
            before = client.segments
            client.send([b"farewell"])
            return client.receive_to_the_end(), client.segments - before

    visiting = asyncio.get_running_loop().run_in_executor(None, visit_until_the_end)
    await server.accept()
    assert await visiting == (b"because so", 1)


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

        async def answers(*records: bytes, silent: bool = True) -> bytes:
            assert told.transport is not None
            # As if it had said nothing since the machine started; or just now, however slow the machine is.
            told.transport._last_read = 0.0 if silent else loop.time() + 3600.0
            told.transport.settle(dozes=dozes)
            assert len(server.doze) == dozes
            await loop.run_in_executor(None, client.send, records)
            if told.holds_at:
                await told.held.wait()
                told.transport.release()
            return await loop.run_in_executor(None, client.receive, sum(map(len, records)))

        assert told.transport is not None
        assert await answers(b"ping", silent=False) == b"PING"
        assert told.transport._ahead == server.ahead
        assert await answers(b"ping") == b"PING"  # After this one the transport reads ahead no more.
        assert await answers(b"ping") == b"PING"
        assert not told.transport._ahead
        told.holds_at = holds and len(told.received) + 1
        record = b"r" * size
        assert await answers(record, *RECORDS) == b"".join([record, *RECORDS]).upper()
        assert await answers(record) == record.upper()


async def test_reading_ahead_begins_with_the_second_record(server: Server, pki: Pki) -> None:
    loop = asyncio.get_running_loop()
    context = client_context(pki.anchors, pki.device("meter-1").credential)
    connecting = loop.run_in_executor(None, OneSegmentClient, server.port, context)
    told = await server.accept()
    with await connecting as client:
        for reads_ahead in (False, server.ahead):
            await loop.run_in_executor(None, client.send, [b"ping"])
            assert await loop.run_in_executor(None, client.receive, 4) == b"PING"
            assert told.transport is not None
            assert told.transport._ahead == reads_ahead
            told.transport._last_read = loop.time() + 3600.0  # However slow the machine, it was not silent.


def test_this_python_has_the_inner_object() -> None:
    assert tls_session._WRAP is not None, "without it every connection costs more: see docs/decisions/0016"


class Other:
    """A session of an interpreter that has changed it."""

    def read(self, size: int) -> bytes: ...  # type: ignore[empty-body]


@pytest.mark.parametrize("wrap", [lambda _context, _socket: None, lambda *_, **__: Other()])
def test_where_the_inner_object_has_changed_the_documented_one_is_used(
    wrap: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tls_session._inner_wrap() is not None
    monkeypatch.setattr(ssl.SSLContext, "_wrap_socket", wrap)
    assert tls_session._inner_wrap() is None
    monkeypatch.setattr(ssl.SSLContext, "_wrap_socket", None)
    assert tls_session._inner_wrap() is None


def test_the_inner_object_is_what_is_used(pki: Pki) -> None:
    context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.REQUIRED)
    accepted, other = socket.socketpair()
    with accepted, other:
        accepted.setblocking(False)
        kept, session = open_tls(context, accepted)
        assert kept is accepted
        assert not isinstance(session, ssl.SSLSocket)


@pytest.mark.parametrize("opener", [open_tls, open_public_tls])
def test_a_handshake_says_what_it_waits_for_also_where_openssl_cannot_be_asked(pki: Pki, opener: Opener) -> None:
    """Who waits to write when it has to read, or the other way round, waits for ever or not at all."""
    context = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.REQUIRED)
    accepted, connected = socket.socketpair()
    told, to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(pki.anchors, None).wrap_bio(told, to_send, server_hostname="localhost")
    accepted.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while accepted.send(b"x" * 65_536):  # So that there is no room for the server's answer.
            pass
    kept, session = opener(context, accepted)
    with kept, connected:
        assert shake_hands(session, 0, kept) == openssl.WANTS_READ
        with contextlib.suppress(ssl.SSLWantReadError):
            client.do_handshake()
        connected.sendall(to_send.read())
        assert shake_hands(session, 0, kept) == openssl.WANTS_WRITE


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
        with contextlib.closing(accepted):
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


async def test_a_reset_is_none(server: Server, pki: Pki) -> None:
    def crash(connection: ssl.SSLSocket) -> None:
        connection.sendall(b"hello")
        connection.recv(100)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    told, _ = await visit(server, client_context(pki.anchors, pki.device("meter-1").credential), crash)
    assert await asyncio.wait_for(told.ended, 30) == "CONNECTION_LOST"
    assert told.detail == "the connection was reset"


async def test_what_comes_after_the_end_has_no_effect(server: Server, pki: Pki) -> None:
    """A session may still have something to write, and a verdict come that it waited for."""
    told, _ = await visit(server, client_context(pki.anchors, pki.device("meter-1").credential), talk_and_keep)
    transport = told.transport
    assert transport is not None
    await asyncio.wait_for(told.ended, 30)
    async with asyncio.timeout(30):
        while len(server.poller):
            await asyncio.sleep(0.01)
    for _ in range(2):
        transport.settle(dozes=True)
        transport.write([b"late"])
        transport.close([b"later"])
        transport.abort()
    assert (transport.untaken, transport.unsent, len(server.poller), len(server.doze)) == (0, False, 0, 0)


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
    assert told.received == b"hhhhh" + (b"".join(RECORDS) if READS_AFTER_A_FAILED_WRITE else b"")
    assert told.detail == ("the peer has closed the connection" if IGNORES_ENDS else "the connection was reset")


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


@pytest.mark.parametrize("ahead", [True, False])
async def test_what_a_client_sends_beside_its_path_is_not_thought_to_be_anothers(pki: Pki, *, ahead: bool) -> None:
    root = pem_of(pki.root.certificate).decode()
    context = server_context(pki.broker().credential, root, client_certificate=ClientCertificate.REQUIRED)
    server = Server(open_tls, context)
    server.ahead = ahead
    client = client_context(root, pki.beside_unreadable(pki.device("meter-1")).credential)
    bystander = Bystander(context, client_context(root, pki.device("meter-2").credential))
    well: list[bool] = []

    def act(connection: ssl.SSLSocket) -> None:
        wait_until(lambda: server.told is not None and server.told.certificate, "it is let in")
        loop.call_soon_threadsafe(lambda: well.append(bystander.is_well()))
        assert talk_and_keep(connection) is not None

    loop = asyncio.get_running_loop()
    try:
        told, _ = await visit(server, client, act)
        assert len(told.path) == 3
        assert well == [True]
    finally:
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
    assert told.received == b"flood" + (b"last words" if READS_AFTER_A_FAILED_WRITE else b"")


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
        connection.suppress_ragged_eofs = False  # type: ignore[attr-defined]
        connection.sendall(b"leave")
        return connection.recv(100)  # Raises where the end comes without close_notify.

    _, end = await visit(server, client_context(pki.anchors, pki.device("meter-1").credential), wait)
    assert end == b""


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
