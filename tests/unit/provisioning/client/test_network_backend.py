"""A peer that resets its connection at whatever moment, or refuses within TLS, is a failure like any other.

The moment is counted in turns of the event loop that both ends share: so each is met, on a machine of any speed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable

import httpx
import pytest

from provisioning.client.bounded_head import BoundedTransport
from provisioning.client.network_backend import NetworkBackend, NetworkTransport
from provisioning.pki.late_handshake import drop
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from provisioning.program.event_loop import new_event_loop
from tests.support.pki import shared_pki

PKI = shared_pki()
TURNS = 7
"""After so many a client has sent its request, which all that comes then is about."""
TRANSPORTS: dict[str, Callable[[ssl.SSLContext], httpx.AsyncBaseTransport]] = {
    "of the service's clients": lambda verify: NetworkTransport(verify, NetworkBackend(), connections=1, kept=1),
    "of lists": BoundedTransport,
    "of lists of anybody": lambda verify: BoundedTransport(verify, elsewhere=True),
}


class Server:
    """A server that says what *context* has it say, or nothing, and resets the connection *turns* after that.

    *turns* None: it refuses the client within TLS, and closes in order.
    """

    def __init__(self, context: ssl.SSLContext | None, turns: int | None) -> None:
        self._turns = turns
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = None if context is None else context.wrap_bio(self._in, self._out, server_side=True)
        self._loop = asyncio.get_running_loop()
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.setblocking(False)
        self._accepted: list[socket.socket] = []
        self._loop.add_reader(self.listening.fileno(), self._accept)

    def close(self) -> None:
        self._loop.remove_reader(self.listening.fileno())
        for each in (self.listening, *self._accepted):
            each.close()

    def _accept(self) -> None:
        connected, _ = self.listening.accept()
        self._accepted.append(connected)
        if self._tls is None:
            self._reset(connected, self._turns or 0)
        else:
            self._loop.add_reader(connected.fileno(), self._shake_hands, connected, self._tls)

    def _shake_hands(self, connected: socket.socket, tls: ssl.SSLObject) -> None:
        self._in.write(connected.recv(65_536))
        wants_more = False
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            wants_more = True
        except ssl.SSLError:
            assert self._turns is None
        connected.sendall(self._out.read())
        if wants_more and self._turns is None:
            return
        self._loop.remove_reader(connected.fileno())
        if self._turns is None:
            connected.shutdown(socket.SHUT_WR)  # It is not closed: what it has not read would be answered by a reset.
        else:
            self._reset(connected, self._turns)

    def _reset(self, connected: socket.socket, turns: int) -> None:
        if turns:
            self._loop.call_soon(self._reset, connected, turns - 1)
        else:
            drop(connected)
            connected.close()


def serving(client_certificate: ClientCertificate) -> ssl.SSLContext:
    """Return a context that answers a hello in one step."""
    credential = PKI.broker().credential
    return server_context(credential, PKI.anchors, client_certificate=client_certificate, remembered_sessions=1)


async def failure(transport: str, context: ssl.SSLContext | None, turns: int | None) -> str:
    """Return the error of a request to such a server: none but that of a network is let through."""
    with contextlib.closing(Server(context, turns)) as server:
        url = f"{'http' if context is None else 'https'}://localhost:{server.listening.getsockname()[1]}/"
        verify = client_context(PKI.anchors)
        async with httpx.AsyncClient(transport=TRANSPORTS[transport](verify), timeout=60, trust_env=False) as client:
            with pytest.raises(httpx.NetworkError) as failed:
                await client.get(url)
    return str(failed.value)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, new_event_loop])
@pytest.mark.parametrize("is_tls", [False, True])
def test_a_peer_that_resets_its_connection_at_any_moment_is_a_failure_of_the_network(
    transport: str, loop: Callable[[], asyncio.AbstractEventLoop], *, is_tls: bool
) -> None:
    """An `AttributeError` or `TypeError` it was, at some: it ended the broker whose feed, staple or list it was."""
    context = serving(ClientCertificate.OPTIONAL) if is_tls else None
    with asyncio.Runner(loop_factory=loop) as runner:
        said = [runner.run(failure(transport, context, turns)) for turns in range(TURNS)]
    if not is_tls:
        assert "the connection was reset as soon as it stood" in said, "the moment was met"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_refusal_behind_the_handshake_is_a_failure_of_the_network(transport: str) -> None:
    """In TLS 1.3 a missing certificate is refused then: OpenSSL's error went through, as a user's of the library."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert "CERTIFICATE_REQUIRED" in runner.run(failure(transport, serving(ClientCertificate.REQUIRED), None))
