"""A TLS socket whose MQTT is in the frames of a WebSocket, as both clients see it: a `BufferedSocket` like any other.

Theory
------
``MQTT bytes ⇄ frames ⇄ TLS``. The clients know no WebSocket: they read and write packets, and `opened` returns a socket
that has been upgraded, before the first packet [MQTT-6.0.0-1]. Each packet that a client sends makes one frame, as
libraries for devices and browsers do; the frames of one turn are sent as one TLS record.

Rules
-----
1. As in `tls_dial`: one deadline, and on any failure the socket is closed and `NotAdmitted` names the layer. Also a TLS
   alert: in TLS 1.3 it is the answer to the upgrade.
2. Pings are answered at once, if the output has room; a peer that floods with them fills nothing.
3. What is no frame that a server may send ends the connection like a failed read (`closure.BrokenFrames`).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from dataclasses import dataclass

from device_sim.link.buffered_socket import OUTPUT_LIMIT, BufferedSocket
from device_sim.link.closure import BrokenFrames, Closure, Layer, from_error
from device_sim.link.tls_dial import Endpoint, NotAdmitted, dial, readable, writable
from device_sim.link.websocket import NotUpgraded, NotWebSocket, WebSocket
from provisioning.pki.openssl import forget_errors
from provisioning.pki.tls import CredentialPem
from provisioning.program.host_and_port import with_port

NOT_UPGRADED = "not upgraded"
"""The code of an endpoint that does not become a WebSocket."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A socket over which MQTT can begin, and how long its stages took (seconds)."""

    socket: BufferedSocket
    tcp: float
    tls: float
    upgrade: float
    """0 without a WebSocket."""


async def opened(
    endpoint: Endpoint,
    context: ssl.SSLContext,
    *,
    deadline: float,
    credential: CredentialPem | None,
    session: ssl.SSLSession | None,
    source: str | None,
    clock_offset: float,
) -> Opened:
    """Connect to *endpoint* within *deadline* seconds, as `tls_dial.dial` does, and upgrade if it is a WebSocket's."""
    started = time.monotonic()
    dialled = await dial(
        endpoint,
        context,
        deadline=deadline,
        credential=credential,
        session=session,
        source=source,
        clock_offset=clock_offset,
    )
    if not endpoint.websocket:
        return Opened(BufferedSocket(dialled.socket), dialled.tcp, dialled.tls, 0.0)
    begun = time.monotonic()
    socket = await _upgraded(endpoint, dialled.socket, deadline - (begun - started))
    return Opened(socket, dialled.tcp, dialled.tls, time.monotonic() - begun)


async def _upgraded(endpoint: Endpoint, tls: ssl.SSLSocket, deadline: float) -> FramedSocket:
    host = with_port(endpoint.server_name, endpoint.port)
    socket = FramedSocket(tls, WebSocket(host, path=endpoint.path))
    try:
        async with asyncio.timeout(deadline):
            await socket.upgrade()
    except (OSError, NotUpgraded) as error:  # Also when the time is over.
        resumed = bool(tls.session_reused)
        tls.close()
        raise NotAdmitted(_refusal(error), tls_resumed=resumed) from error
    except BaseException:
        tls.close()
        raise
    return socket


def _refusal(error: OSError | NotUpgraded) -> Closure:
    now = time.monotonic()
    if isinstance(error, NotUpgraded):
        return Closure(Layer.WEBSOCKET, NOT_UPGRADED, str(error), now)
    if isinstance(error, TimeoutError):
        return Closure(Layer.WEBSOCKET, "timeout", "no answer to the upgrade in time", now)
    return from_error(error, now)


class FramedSocket(BufferedSocket):
    """A socket that speaks WebSocket. Created by `opened`."""

    __slots__ = ("_websocket",)

    def __init__(self, tls: ssl.SSLSocket, websocket: WebSocket) -> None:
        super().__init__(tls)
        self._websocket = websocket

    async def upgrade(self) -> None:
        """Ask for the upgrade and wait for it; `recv` returns what follows the answer.

        Raises `NotUpgraded`, and what `ssl` raises.
        """
        loop = asyncio.get_running_loop()
        super().queue(self._websocket.request)
        self.flush()
        while self.unsent:
            await writable(loop, self.fileno())
            self.flush()
        while not self._websocket.upgraded:
            try:
                data = super()._read()
            except ssl.SSLWantReadError:
                if self._write_error is not None:
                    raise self._write_error from None
                await readable(loop, self.fileno())
                continue
            except OSError:
                forget_errors()
                raise
            if not data:
                raise NotUpgraded("the peer closed the connection without an answer")
            self._input = self._unframed(data)

    @property
    def unread(self) -> bool:
        """Whether there is input, or its end, that polling the descriptor will not report."""
        return super().unread or self._websocket.closed

    def _read(self) -> bytes:
        while not self._websocket.closed:
            data = super()._read()
            if not data:
                break
            if payload := self._unframed(data):
                return payload
        return b""

    def _unframed(self, data: bytes) -> bytes:
        """Return the payload in *data*, and answer what wants an answer."""
        websocket = self._websocket
        try:
            payload = websocket.unframed(data)
        except NotWebSocket as error:
            raise BrokenFrames(str(error)) from None
        answer, websocket.owed = websocket.owed, b""
        if answer and len(self._output) <= OUTPUT_LIMIT:
            super().queue(answer)
            self.flush()
        return payload

    def queue(self, buffer: bytes | bytearray) -> None:
        """Queue *buffer* in a frame for the next `flush`, however much is queued already."""
        super().queue(self._websocket.framed(buffer))

    def close(self) -> None:
        """Leave as a WebSocket does (RFC 6455 §7.1.2), and close; see `BufferedSocket.close`."""
        if len(self._output) <= OUTPUT_LIMIT:
            super().queue(self._websocket.farewell())
        super().close()
