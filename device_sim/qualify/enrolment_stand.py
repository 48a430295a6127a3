"""The enrolment service for one device: EST (RFC 7030) that defers the device, or is the wrong server.

Handles: simplereenroll (and simpleenroll) and cacerts over TLS, one request per connection; 202 and 503 with
Retry-After (RFC 7030 §4.2.3, RFC 9110 §10.2.3) before the first certificate.
Does not handle: tokens and policies: a client that presents the device's certificate, or requests its name, gets one.

Rules
-----
1. Every connection is noted, with a handshake or without: only below TLS is one seen that came, and refused us.
2. Any byte behind the handshake counts as sent, whether it becomes a request or not: the first line may hold a secret.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from device_sim.qualify.client_hello import ClientHello, client_hello, in_clear
from device_sim.qualify.est_request import EstRequest, est_request
from device_sim.qualify.papers import Papers, ServerPaper, ServerStaple
from device_sim.qualify.peeked_hello import HANDSHAKE, first_bytes
from provisioning.pki.null_parameters import load_request
from provisioning.pki.tls import ClientCertificate, server_context

_MOST_ARRIVALS = 5_000
_PATIENCE = 30.0
_ENROLS = ("/simpleenroll", "/simplereenroll")
_CERTS_ONLY = "Content-Type: application/pkcs7-mime; smime-type=certs-only\r\nContent-Transfer-Encoding: base64\r\n"
_ANCHORS = "Content-Type: application/pkcs7-mime\r\nContent-Transfer-Encoding: base64\r\n"  # RFC 7030 §4.1.3


@dataclass(slots=True)
class Arrival:
    """One connection of the device."""

    hello: ClientHello | None = None
    """None: none has come whole."""
    sent_data: bool = False
    """Whether any application data came: it has accepted the service, or done without TLS."""
    in_clear: bool = False
    """Whether it came without TLS: it has told everybody on the way."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of the device, and its answer."""

    at: float
    path: str
    certificate: bool
    status: HTTPStatus
    serial: int | None = None
    """The serial number of the certificate that it was given."""

    @property
    def enrols(self) -> bool:
        """Whether it asks for a certificate."""
        return self.path.endswith(_ENROLS)


class EnrolmentStand:
    """Listens on a free port of *host*; the first enrolment is answered with *status* and *retry_after*."""

    def __init__(
        self,
        papers: Papers,
        host: str,
        *,
        paper: ServerPaper = ServerPaper.GOOD,
        stapled: ServerStaple = ServerStaple.GOOD,
        status: HTTPStatus = HTTPStatus.OK,
        retry_after: int = 0,
        other_key: bool = False,
    ) -> None:
        """*other_key*: each certificate is for a key that the device does not have."""
        self.arrivals: list[Arrival] = []
        self.asked: list[Asked] = []
        self.issued = asyncio.Event()
        """Set when it has answered with a certificate."""
        self.port = 0
        self._papers = papers
        self._host = host
        self._status = status
        self._retry_after = retry_after
        self._other_key = other_key
        self._context = server_context(
            papers.enrolment[paper].pem,
            papers.anchors,
            client_certificate=ClientCertificate.OPTIONAL,
            allow_tls12=True,
            resumes=False,  # As the real service.
        )
        papers.vouch_for(self._context, papers.enrolment[paper], stapled)
        self._listening: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        """Listen; `port` says where."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        self._listening = socket.create_server((self._host, 0), family=family)
        self._listening.setblocking(False)
        self.port = self._listening.getsockname()[1]
        self._start(self._accept(self._listening))
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Stop, and drop the device."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for writer in self._open:
            writer.transport.abort()
        if self._listening is not None:
            self._listening.close()
        await asyncio.sleep(0)  # The transports close their sockets in the loop's next turn.

    def _start(self, story: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(story, name="enrolment stand")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while len(self.arrivals) < _MOST_ARRIVALS:
            raw, _ = await loop.sock_accept(listening)
            raw.setblocking(False)
            arrival = Arrival()
            self.arrivals.append(arrival)
            self._start(self._serve(raw, arrival))

    async def _serve(self, raw: socket.socket, arrival: Arrival) -> None:
        connected = await self._over_tls(raw, arrival)
        if connected is None:
            return
        reader, writer = connected
        self._open.add(writer)
        try:
            # A device that breaks off, or sends something other than HTTP, has requested nothing.
            with contextlib.suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
                async with asyncio.timeout(_PATIENCE):
                    first = await reader.readexactly(1)
                    arrival.sent_data = True
                    await self._answer(writer, await est_request(first, reader, writer))
        finally:
            writer.close()

    async def _over_tls(
        self, raw: socket.socket, arrival: Arrival
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
        """Return the connection above TLS; None if the device has refused us."""
        try:
            first = await first_bytes(raw)
        except asyncio.CancelledError:
            raw.close()
            raise
        arrival.hello, arrival.in_clear = client_hello(first), in_clear(first)
        arrival.sent_data = arrival.in_clear
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        try:
            transport, _ = await loop.connect_accepted_socket(
                lambda: protocol, raw, ssl=self._context, ssl_handshake_timeout=HANDSHAKE
            )
        except OSError:
            return None
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _answer(self, writer: asyncio.StreamWriter, request: EstRequest) -> None:
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        path = request.path
        enrols = path.endswith(_ENROLS)
        put_off = enrols and self._status is not HTTPStatus.OK and not any(each.enrols for each in self.asked)
        status, content, headers, serial = HTTPStatus.OK, b"", "", None
        if put_off:
            status, content, headers = self._status, b"later\n", f"Retry-After: {self._retry_after}\r\n"
        elif enrols:
            try:
                csr = _csr(request.body)
            except ValueError:
                status, content = HTTPStatus.BAD_REQUEST, b"no PKCS #10 request in base64\n"
            else:
                issued = self._papers.answer(csr, other_key=self._other_key)
                serial, content, headers = issued.serial_number, _certs_only(issued), _CERTS_ONLY
        elif path.endswith("/cacerts"):
            content, headers = _certs_only(*x509.load_pem_x509_certificates(self._papers.anchors.encode())), _ANCHORS
        else:
            status, content = HTTPStatus.NOT_FOUND, b"no such resource\n"
        shown = tls.getpeercert(binary_form=True) is not None
        asked = Asked(time.monotonic(), path, shown, status, serial)
        self.asked.append(asked)
        if serial is not None:
            self.issued.set()
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\n{headers}Content-Length: {len(content)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + content)
        await writer.drain()


def _certs_only(*certificates: x509.Certificate) -> bytes:
    """Return the answer that holds *certificates* (RFC 7030 §4.1.3, §4.2.3)."""
    return base64.encodebytes(pkcs7.serialize_certificates(list(certificates), Encoding.DER))


def _csr(body: bytes) -> x509.CertificateSigningRequest:
    """Return the PKCS #10 request in *body*: base64, or PEM, which our service takes, too; raise ValueError."""
    if b"-----BEGIN " in body:
        body = b"".join(body.split(b"-----")[2:3])  # Between its first line and its last.
    return load_request(base64.b64decode(b"".join(body.split()), validate=True))
