"""Opens a TCP connection and finishes the client's half of the TLS handshake without blocking the loop.

Theory
------
paho connects and shakes hands with blocking calls. Here both happen on a non-blocking `ssl.SSLSocket` driven by
`loop.add_reader` / `add_writer`, and paho gets the finished socket. In TLS 1.3 "finished" says nothing about admission:
the server checks the client's certificate afterwards.

Rules
-----
1. One deadline for everything; on any failure the socket is closed and `NotAdmitted` names the layer.
2. The caller owns a socket that is returned.
3. Any number of devices share one TLS context: OpenSSL copies the credential from the context when a connection is
   created from it, so each device's own is loaded just before, in the same turn of the loop, in place of one of the
   same kind (`shared_context`). A context per device would cost 27 KB and 0.4 ms more. A context that has once held a
   credential is never used without one.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from dataclasses import dataclass, replace

from device_sim.link.closure import SERVER_CERTIFICATE, Closure, Layer, from_error
from device_sim.link.lost_reset import ask_again
from device_sim.link.websocket import MQTT_PATH
from provisioning.pki.openssl import forget_errors
from provisioning.pki.tls import CredentialPem

# Linux <linux/in.h>; `socket` does not define it. The port is chosen at connect(), so that each pair of addresses has
# its own 28,232 ephemeral ports.
_IP_BIND_ADDRESS_NO_PORT = 24
_SILENT = "it takes the connection, and does not finish the TLS handshake in time"


class NotAdmitted(Exception):
    """The connection could not be opened; *closure* says which layer refused it and why.

    *tls_resumed* says whether the TLS handshake had been a resumption.
    """

    def __init__(self, closure: Closure, *, tls_resumed: bool = False) -> None:
        super().__init__(str(closure))
        self.closure = closure
        self.tls_resumed = tls_resumed


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a broker listens: a numeric address, and the name its certificate must contain."""

    host: str
    port: int
    server_name: str
    websocket: bool = False
    """Whether MQTT is in the frames of a WebSocket there. `dial` ends before its upgrade."""
    path: str = MQTT_PATH
    """What the upgrade asks for."""


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connected, non-blocking socket after its handshake, and how long its stages took (seconds)."""

    socket: ssl.SSLSocket
    tcp: float
    tls: float


async def dial(
    endpoint: Endpoint,
    context: ssl.SSLContext,
    *,
    deadline: float,
    credential: CredentialPem | None = None,
    session: ssl.SSLSession | None = None,
    source: str | None = None,
    clock_offset: float = 0.0,
    asks_again: bool = False,
) -> Dialled:
    """Connect to *endpoint* within *deadline* seconds.

    *credential* replaces the one in *context* (rule 3), *session* offers resumption, *source* is a local address.
    *clock_offset* is by how many seconds the clock that checks the server's certificate differs from ours.
    *asks_again*: also a RST that is lost on the way ends the connection.
    """
    loop = asyncio.get_running_loop()
    started = time.monotonic()
    connected: float | None = None
    raw = socket.socket(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET)
    try:
        raw.setblocking(False)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if asks_again:
            ask_again(raw)
        if source is not None:
            raw.setsockopt(socket.IPPROTO_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            raw.bind((source, 0))
        async with asyncio.timeout(deadline):
            await loop.sock_connect(raw, (endpoint.host, endpoint.port))
            connected = time.monotonic()
            if credential is not None:
                credential.load_into(context)
            # From here on the descriptor belongs to the SSLSocket, and *raw* is detached.
            expect_connected(raw)
            raw = context.wrap_socket(
                raw, server_hostname=endpoint.server_name, do_handshake_on_connect=False, session=session
            )
            await handshake(loop, raw)
        if clock_offset:
            _judge_by(raw, time.time() + clock_offset)
    except _OutOfTime as error:
        raw.close()
        raise NotAdmitted(
            Closure(Layer.TLS, SERVER_CERTIFICATE, f"we refuse the server: {error}", time.monotonic())
        ) from error
    except (OSError, TimeoutError) as error:
        raw.close()
        closure = from_error(error, time.monotonic())
        if connected is not None and isinstance(error, TimeoutError):
            closure = replace(closure, layer=Layer.TLS, reason=_SILENT)
        raise NotAdmitted(closure) from error
    except BaseException:
        raw.close()
        raise
    return Dialled(raw, tcp=connected - started, tls=time.monotonic() - connected)


def expect_connected(raw: socket.socket) -> None:
    """Raise `ConnectionResetError` if the peer has reset *raw* already.

    `ssl` raises it too, and leaves the descriptor open in an object that nobody gets.
    """
    try:
        raw.getpeername()
    except OSError as error:
        raise ConnectionResetError(error.errno, "the peer has reset the connection") from error


class _OutOfTime(Exception):
    """By the device's clock the server's certificate is not valid."""


def _judge_by(tls: ssl.SSLSocket, now: float) -> None:
    certificate = tls.getpeercert() or {}
    begins, ends = (ssl.cert_time_to_seconds(str(certificate[name])) for name in ("notBefore", "notAfter"))
    if not begins <= now <= ends:
        word = "is not valid yet" if now < begins else "has expired"
        raise _OutOfTime(f"by the device's clock its certificate {word}")


async def handshake(loop: asyncio.AbstractEventLoop, tls: ssl.SSLSocket) -> None:
    """Finish the handshake of the non-blocking *tls*, on either side; raise what `ssl` raises."""
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            await readable(loop, tls.fileno())
        except ssl.SSLWantWriteError:
            await writable(loop, tls.fileno())
        except OSError:
            forget_errors()
            raise
        else:
            return


async def readable(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    """Return when there is something to read."""
    ready = loop.create_future()
    loop.add_reader(descriptor, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


async def writable(loop: asyncio.AbstractEventLoop, descriptor: int) -> None:
    """Return when something can be written."""
    ready = loop.create_future()
    loop.add_writer(descriptor, _wake, ready)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
