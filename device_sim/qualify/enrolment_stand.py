"""The enrolment service for one device: EST (RFC 7030) that defers the device, or is the wrong server.

Handles: simplereenroll (and simpleenroll) over TLS, one request per connection; 202 and 503 with Retry-After (RFC 7030
§4.2.3, RFC 9110 §10.2.3) before the first certificate.
Does not handle: tokens and policies: a client that presents the device's certificate, or requests its name, gets one.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import ssl
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7

from device_sim.qualify.papers import Papers, ServerPaper
from device_sim.trouble.proxy import Proxy
from provisioning.pki.tls import ClientCertificate, server_context

_LARGEST = 65536
_LOOPBACK = "127.0.0.1"
_PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of the device, and its answer."""

    at: float
    path: str
    certificate: bool
    status: HTTPStatus
    serial: int | None = None
    """The serial number of the certificate that it was given."""


class EnrolmentStand:
    """Listens on a free port of *host*; the first request is answered with *status* and *retry_after*."""

    def __init__(
        self,
        papers: Papers,
        host: str,
        *,
        paper: ServerPaper = ServerPaper.GOOD,
        status: HTTPStatus = HTTPStatus.OK,
        retry_after: int = 0,
        other_key: bool = False,
    ) -> None:
        """*other_key*: each certificate is for a key that the device does not have."""
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
            papers.enrolment[paper].pem, papers.anchors, client_certificate=ClientCertificate.OPTIONAL, allow_tls12=True
        )
        papers.vouch_for(self._context, papers.enrolment[paper])
        self._server: asyncio.Server | None = None
        self._door: Proxy | None = None

    async def __aenter__(self) -> Self:
        """Listen; `port` says where."""
        self._server = await asyncio.start_server(self._serve, _LOOPBACK, 0, ssl=self._context, limit=_LARGEST)
        # Only below TLS can a client be seen that connected and refused us.
        self._door = Proxy(_LOOPBACK, self._server.sockets[0].getsockname()[1], listen=self._host)
        await self._door.__aenter__()
        self.port = self._door.port
        return self

    async def __aexit__(self, *_error: object) -> None:
        """Stop."""
        if self._door is not None:
            await self._door.__aexit__()
        if self._server is not None:
            self._server.close()

    @property
    def came(self) -> int:
        """How many connections it had, with a handshake or without."""
        return self._door.accepted if self._door is not None else 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A device that breaks off, or sends something other than HTTP, has requested nothing.
            with contextlib.suppress(OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
                async with asyncio.timeout(_PATIENCE):
                    path, body = await _request(reader)
                    await self._answer(writer, path, body)
        except asyncio.LimitOverrunError:
            pass  # Its header is longer than any in EST.
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, path: str, body: bytes) -> None:
        tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
        put_off = self._status is not HTTPStatus.OK and not self.asked
        status, content, headers, serial = HTTPStatus.OK, b"", "", None
        if put_off:
            status, content, headers = self._status, b"later\n", f"Retry-After: {self._retry_after}\r\n"
        elif path.endswith(("/simpleenroll", "/simplereenroll")):
            try:
                request = x509.load_der_x509_csr(base64.b64decode(b"".join(body.split()), validate=True))
            except (ValueError, binascii.Error):
                status, content = HTTPStatus.BAD_REQUEST, b"no PKCS #10 request in base64\n"
            else:
                issued = self._papers.answer(request, other_key=self._other_key)
                serial, der = issued.serial_number, pkcs7.serialize_certificates([issued], Encoding.DER)
                content, headers = base64.encodebytes(der), "Content-Type: application/pkcs7-mime\r\n"
        elif not path.endswith("/cacerts"):
            status, content = HTTPStatus.NOT_FOUND, b"no such resource\n"
        shown = tls.getpeercert(binary_form=True) is not None
        asked = Asked(time.monotonic(), path, shown, status, serial)
        self.asked.append(asked)
        if serial is not None:
            self.issued.set()
        head = f"HTTP/1.1 {status.value} {status.phrase}\r\n{headers}Content-Length: {len(content)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + content)
        await writer.drain()


async def _request(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *fields = head.split("\r\n")
    _, path, _ = first.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    length = int(headers.get("content-length", "0"))
    if not 0 <= length <= _LARGEST:
        raise ValueError("longer than any request")
    return path, await reader.readexactly(length)
