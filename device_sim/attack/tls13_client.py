"""A TLS 1.3 client whose last flight the caller supplies: it sends what OpenSSL refuses to load.

Theory
------
An attacker brings a TLS stack of his own. OpenSSL does not send an unparsable certificate, a chain in another order, or
a certificate without its proof. Everything up to the server's Finished is the same for every client, and is done here;
the messages between that and the client's own Finished are a *flight*, a generator that reads the transcript as it
grows and yields each message complete with its header. A server that requests no certificate gets no flight, as from
every client (RFC 8446 §4.4.2): it would refuse an unrequested one, and seem to have judged it.

Rules
-----
1. One version, one suite, one group (X25519), which every TLS 1.3 server that we attack supports. A server that wants
   another is an error (`HandshakeBroken`), not an answer.
2. The server is not authenticated: nothing secret is sent. Its Finished is verified, since it proves that the keys
   match.
3. One deadline for everything. What ends the connection is an answer (`Seen`), as in `device_sim.attack.raw_client`.

Does not handle: resumption, key updates, HelloRetryRequest, a server's further requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from device_sim.attack.tls13_keys import APPLICATION_DATA, BadRecord, KeySchedule, Protection
from device_sim.attack.verdict import OPEN, UNANSWERED, ClosedBy, Layer, Seen, seen_in
from device_sim.link.closure import from_error
from device_sim.link.lost_reset import ask_again
from device_sim.link.tls_dial import Endpoint
from device_sim.link.websocket import NotUpgraded, NotWebSocket, WebSocket

CERTIFICATE, CERTIFICATE_VERIFY, FINISHED = 11, 15, 20
_CLIENT_HELLO, _SERVER_HELLO, _CERTIFICATE_REQUEST = 1, 2, 13
_CHANGE_CIPHER_SPEC, _ALERT, _HANDSHAKE = 20, 21, 22
_VERSION = b"\x03\x03"
_TLS13 = b"\x03\x04"
SUITE = b"\x13\x01"
"""TLS_AES_128_GCM_SHA256."""
_X25519 = b"\x00\x1d"
_SCHEMES = bytes.fromhex("0403 0503 0603 0807 0804 0805 0806")  # ECDSA, Ed25519, RSA-PSS: what a server may sign with.
_LARGEST_FRAGMENT = 1 << 14
_HEADER = 5
_MESSAGE_HEADER = 4
_T = TypeVar("_T")
_RETRY = hashlib.sha256(b"HelloRetryRequest").digest()
# RFC 8446 §6, as OpenSSL writes them.
_ALERTS = {
    0: "close_notify", 10: "unexpected_message", 20: "bad_record_mac", 22: "record_overflow", 40: "handshake_failure",
    42: "bad_certificate", 43: "unsupported_certificate", 44: "certificate_revoked", 45: "certificate_expired",
    46: "certificate_unknown", 47: "illegal_parameter", 48: "unknown_ca", 49: "access_denied", 50: "decode_error",
    51: "decrypt_error", 70: "protocol_version", 71: "insufficient_security", 80: "internal_error",
    86: "inappropriate_fallback", 90: "user_canceled", 109: "missing_extension", 110: "unsupported_extension",
    112: "unrecognized_name", 113: "bad_certificate_status_response", 115: "unknown_psk_identity",
    116: "certificate_required", 120: "no_application_protocol",
}  # fmt: skip


class HandshakeBroken(Exception):
    """The server does not speak as this client can; the text says where they diverge."""


class _Ended(Exception):
    """The connection has ended, or the server has refused."""

    def __init__(self, seen: Seen) -> None:
        super().__init__(seen.text)
        self.seen = seen


class Transcript:
    """The handshake messages so far (RFC 8446 §4.4.1)."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, message: bytes) -> None:
        """Append one whole message."""
        self._hash.update(message)

    def digest(self) -> bytes:
        """Return the hash of all messages so far."""
        return self._hash.copy().digest()


Flight = Callable[[bytes, Transcript], Iterator[bytes]]
"""Returns what the client sends before its Finished, given the context of the server's CertificateRequest, if any."""


def message(kind: int, body: bytes) -> bytes:
    """Return a handshake message."""
    return bytes((kind,)) + len(body).to_bytes(3) + body


async def offer(endpoint: Endpoint, suites: bytes, deadline: float) -> Seen:
    """Connect and offer only *suites*; return the server's refusal, or *agreed* if it accepts one.

    Raises `HandshakeBroken` where it answers otherwise.
    """
    return await _connected(endpoint, deadline, lambda made: made.offer(endpoint.server_name, suites))


async def exchange(endpoint: Endpoint, flight: Flight, request: bytes, deadline: float) -> bytes | Seen:
    """Connect, send *flight*, Finished and *request*; return the server's first application data, or the end.

    Over WebSocket, the first that it says after the upgrade. Raises `HandshakeBroken` if the server's half cannot be
    followed.
    """
    websocket = WebSocket(endpoint.server_name, path=endpoint.path) if endpoint.websocket else None
    if websocket is not None:
        request = websocket.request + websocket.framed(request)
    try:
        return await _connected(
            endpoint, deadline, lambda made: made.run(endpoint.server_name, flight, request, websocket)
        )
    except (NotUpgraded, NotWebSocket) as error:
        return Seen(Layer.MQTT, "closed", f"no WebSocket: {error}")


async def _connected(endpoint: Endpoint, deadline: float, what: Callable[[_Exchange], Awaitable[_T]]) -> _T | Seen:
    try:
        async with asyncio.timeout(deadline):
            with socket.socket(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET) as plain:
                plain.setblocking(False)
                ask_again(plain)
                await asyncio.get_running_loop().sock_connect(plain, (endpoint.host, endpoint.port))
                return await what(_Exchange(plain))
    except _Ended as ended:
        return ended.seen
    except TimeoutError:
        return Seen(Layer.TLS, OPEN, f"neither answer nor end within {deadline:g} s", ClosedBy.NOBODY, got_in=True)
    except OSError as error:
        seen = seen_in(from_error(error, time.monotonic()))
        return Seen(Layer.TCP, UNANSWERED, seen.reason, ClosedBy.NOBODY) if seen.code == "error" else seen


class _Exchange:
    """One connection."""

    def __init__(self, plain: socket.socket) -> None:
        self._socket = plain
        self._loop = asyncio.get_running_loop()
        self._read = b""
        self._transcript = Transcript()
        self._opening: list[Protection] = []
        self._messages = b""

    async def offer(self, server_name: str, suites: bytes) -> Seen:
        await self._hello(server_name, suites)
        _, body = await self._message(_SERVER_HELLO)
        taken = body[35 + body[34] :][:2]
        return Seen(Layer.TLS, "agreed", f"the server takes suite 0x{taken.hex()}", ClosedBy.NOBODY, got_in=True)

    async def _hello(self, server_name: str, suites: bytes) -> X25519PrivateKey:
        private = X25519PrivateKey.generate()
        hello = _client_hello(server_name, private.public_key().public_bytes_raw(), suites)
        self._transcript.add(hello)
        await self._send(bytes((_HANDSHAKE,)) + b"\x03\x01" + len(hello).to_bytes(2) + hello)
        return private

    async def run(self, server_name: str, flight: Flight, request: bytes, websocket: WebSocket | None) -> bytes:
        private = await self._hello(server_name, SUITE)
        try:
            _, body = await self._message(_SERVER_HELLO)
        except _Ended as ended:  # No certificate has been shown yet.
            raise HandshakeBroken(f"the server refuses our hello: {ended.seen.text}") from ended
        schedule = KeySchedule(private.exchange(X25519PublicKey.from_public_bytes(_share_in(body))))
        sealing, server = schedule.handshake(self._transcript.digest())
        self._opening.append(server)
        asked: bytes | None = None
        while True:
            before = self._transcript.digest()
            kind, body = await self._message()
            if kind == _CERTIFICATE_REQUEST:
                asked = body[1 : 1 + body[0]]
            elif kind == FINISHED:
                break
        if not hmac.compare_digest(body, server.finished(before)):
            raise HandshakeBroken("the server's Finished is not of this handshake")
        application, answering = schedule.application(self._transcript.digest())
        self._opening.append(answering)
        sent = b""
        for each in () if asked is None else flight(asked, self._transcript):
            sent += _sealed(sealing, _HANDSHAKE, each)
            self._transcript.add(each)
        sent += _sealed(sealing, _HANDSHAKE, message(FINISHED, sealing.finished(self._transcript.digest())))
        await self._send(sent + _sealed(application, APPLICATION_DATA, request))
        return await self._first(websocket)

    async def _first(self, websocket: WebSocket | None) -> bytes:
        """Return the first application data; over *websocket*, the first of its frames."""
        while True:
            kind, content = await self._record()
            if kind != APPLICATION_DATA:
                continue
            if websocket is not None:
                content = websocket.unframed(content)
            if content:
                return content

    async def _send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):  # A peer that refuses has usually said why before: that is read.
            await self._loop.sock_sendall(self._socket, data)

    async def _message(self, wanted: int | None = None) -> tuple[int, bytes]:
        """Return the next handshake message and add it to the transcript."""
        while len(self._messages) < _MESSAGE_HEADER or len(self._messages) < _whole(self._messages):
            kind, content = await self._record()
            if kind != _HANDSHAKE:
                raise HandshakeBroken(f"a record of type {kind} in the middle of the handshake")
            self._messages += content
        end = _whole(self._messages)
        found, self._messages = self._messages[:end], self._messages[end:]
        if wanted is not None and found[0] != wanted:
            raise HandshakeBroken(f"handshake message {found[0]} where {wanted} is due")
        self._transcript.add(found)
        return found[0], found[_MESSAGE_HEADER:]

    async def _record(self) -> tuple[int, bytes]:
        """Return kind and content of the next record; an alert ends everything."""
        while True:
            header = await self._exactly(_HEADER)
            kind, content = header[0], await self._exactly(int.from_bytes(header[3:]))
            if kind == _CHANGE_CIPHER_SPEC:  # For middleboxes (RFC 8446 §D.4).
                continue
            if kind == APPLICATION_DATA:
                kind, content = self._opened(header, content)
            if kind == _ALERT:
                name = _ALERTS.get(content[-1], f"alert {content[-1]}")
                raise _Ended(Seen(Layer.TLS, "closed" if name == "close_notify" else name))
            return kind, content

    def _opened(self, header: bytes, content: bytes) -> tuple[int, bytes]:
        # Erlang still sends alerts about our certificate under its handshake keys, after its Finished.
        for protection in reversed(self._opening):
            with contextlib.suppress(BadRecord):
                return protection.open(header, content)
        raise HandshakeBroken("a record does not open with any key of the server's")

    async def _exactly(self, size: int) -> bytes:
        # Not with a StreamReader: after a reset it loses what came before, which is the alert.
        while len(self._read) < size:
            more = await self._loop.sock_recv(self._socket, _LARGEST_FRAGMENT)
            if not more:
                raise _Ended(Seen(Layer.TLS, "closed", "the peer closed the connection without an alert"))
            self._read += more
        taken, self._read = self._read[:size], self._read[size:]
        return taken


def _sealed(protection: Protection, kind: int, content: bytes) -> bytes:
    starts = range(0, len(content), _LARGEST_FRAGMENT)
    return b"".join(protection.seal(kind, content[start : start + _LARGEST_FRAGMENT]) for start in starts)


def _whole(messages: bytes) -> int:
    return _MESSAGE_HEADER + int.from_bytes(messages[1:_MESSAGE_HEADER])


def _client_hello(server_name: str, share: bytes, suites: bytes) -> bytes:
    name = server_name.encode("idna")
    extensions = (
        _extension(0, _vector(2, b"\0" + _vector(2, name)))
        + _extension(10, _vector(2, _X25519))
        + _extension(13, _vector(2, _SCHEMES))
        + _extension(43, _vector(1, _TLS13))
        + _extension(51, _vector(2, _X25519 + _vector(2, share)))
    )
    return message(
        _CLIENT_HELLO,
        _VERSION + secrets.token_bytes(32) + _vector(1, b"") + _vector(2, suites) + b"\x01\0" + _vector(2, extensions),
    )


def _share_in(server_hello: bytes) -> bytes:
    """Return the server's X25519 share; raise `HandshakeBroken` if it chose anything else."""
    if server_hello[2:34] == _RETRY:
        raise HandshakeBroken("the server wants another hello")
    position = 35 + server_hello[34]
    if server_hello[position : position + 2] != SUITE:
        raise HandshakeBroken("the server chose another suite than TLS_AES_128_GCM_SHA256")
    extensions = server_hello[position + 5 :]
    while extensions:
        kind, size = int.from_bytes(extensions[:2]), int.from_bytes(extensions[2:4])
        if kind == 51:  # noqa: PLR2004 - key_share
            return extensions[8 : 4 + size]
        extensions = extensions[4 + size :]
    raise HandshakeBroken("the server's hello has no key share")


def _extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2) + _vector(2, content)


def _vector(width: int, content: bytes) -> bytes:
    return len(content).to_bytes(width) + content
