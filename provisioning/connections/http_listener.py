"""The HTTP server of one port: the library's, with our own accepting of connections and without its extras.

It handles no signals, writes no access log, opens no WebSocket and does not name itself. It trusts no headers of HTTP
that proxies write; a PROXY header, from a proxy in the settings, is read by `provisioning.connections.door`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Final, cast

import structlog
import uvicorn
from starlette.applications import Starlette

from provisioning.connections.connection_protocol import ConnectionProtocol
from provisioning.connections.door import HANDSHAKE_SECONDS, Door
from provisioning.connections.farewell import TLS_END_SECONDS
from provisioning.connections.places import Place, Places
from provisioning.program.proxy_header import Address
from provisioning.program.proxy_networks import ProxyNetworks

log = structlog.get_logger(__name__)

_GRACE_SECONDS: Final = 10
"""For requests under way at a stop. Not the library's own limit, whose line in the log has no code."""
_FAREWELL_SECONDS: Final = 0.5
"""At least so long, and at most twice, a client may take to end its side when the service ends."""
_DATE: Final = 0
"""The tick, of the library's ten per second, at which it updates the date."""


def seconds_of_this_date(now: float) -> float:
    """Return for how long the date of answers, which has whole seconds, is that of *now*.

    A date that is looked at once a second, but not when the next one begins, is late by up to a second: an OCSP answer
    or a CRL then says that it was modified after the answer was sent, which RFC 9110 §8.8.2.1 forbids.
    """
    return 1.0 - now % 1.0


class HttpListener(uvicorn.Server):
    """A server that leaves signals to others, and reports when it accepts connections."""

    def __init__(
        self, config: uvicorn.Config, places: Places, proxies: ProxyNetworks | None, handshake_seconds: float
    ) -> None:
        super().__init__(config)
        self._proxies = proxies
        self._handshake_seconds = handshake_seconds
        self.accepting: Final = asyncio.Event()
        self._stopping: Final = asyncio.Event()
        self._places = places
        self._doors: list[Door] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept connections with our own `Door`: the library does not count connections."""
        self.servers = []
        context = self.config.ssl
        for each in sockets or ():
            door = Door(
                each,
                None if context is None else lambda: context,
                self._protocol,
                self._places,
                self._proxies,
                self._handshake_seconds,
                shutdown_seconds=TLS_END_SECONDS,
            )
            door.open()
            self._doors.append(door)
        self.started = True
        self.accepting.set()

    def stop(self) -> None:
        """Let `serve` come to its end."""
        self.should_exit = True
        self._stopping.set()

    async def answered(self, streams: Callable[[], int]) -> None:
        """Wait until no requests are under way but as many as there are *streams*, or for half of what they have."""
        under_way = self.server_state.tasks
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GRACE_SECONDS / 2):
                while len(under_way) > streams():
                    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)

    async def main_loop(self) -> None:
        """Keep the date of answers current until `stop`. The library's own loop polls ten times a second."""
        while not await self.on_tick(_DATE):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds_of_this_date(time.time())):
                    await self._stopping.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, and shut down in order; what is still under way after a while is cut off."""
        for door in self._doors:
            door.close()
        seeing_out = asyncio.create_task(self._see_out())
        try:
            async with asyncio.timeout(_GRACE_SECONDS):
                await super().shutdown(sockets)
        except TimeoutError:
            cut_off, left = list(self.server_state.tasks), len(self.server_state.connections)
            log.warning("requests cut off", code="REQUESTS_CUT_OFF", requests=len(cut_off), connections=left)
            for each in cut_off:
                each.cancel()
        finally:
            seeing_out.cancel()

    async def _see_out(self) -> None:
        """Cut off clients that have been sent everything and do not end their side: the farewell waits for longer.

        From a client in no call, like a pool that keeps a connection for its next request, it never comes.
        """
        told = set[ConnectionProtocol]()
        while True:
            await asyncio.sleep(_FAREWELL_SECONDS)
            open_still = cast("set[ConnectionProtocol]", self.server_state.connections)
            for each in told & open_still:
                each.transport.abort()
            told = {each for each in open_still if each.is_over}

    def _protocol(self, place: Place, client: Address | None) -> asyncio.Protocol:
        config = self.config
        made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg] # place and client are ours
            config=config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            place=place,
            client=client,
        )
        return made

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone: two servers share this process."""
        yield


def http_listener(
    app: Starlette,
    protocol: Callable[..., ConnectionProtocol],
    context: ssl.SSLContext | None,
    places: Places,
    proxies: ProxyNetworks | None = None,
    handshake_seconds: float = HANDSHAKE_SECONDS,
) -> HttpListener:
    """Return a server of *app*, over TLS with a *context*; each connection is a *protocol*, and has one of *places*.

    Connections from *proxies* begin with a PROXY header. That, and the handshake, may each take *handshake_seconds*.
    """
    headers = [("X-Content-Type-Options", "nosniff")]
    if context is not None:
        headers.append(("Strict-Transport-Security", "max-age=31536000"))
    return HttpListener(
        uvicorn.Config(
            app,
            http=protocol,  # type: ignore[arg-type] # It is called, and nothing else.
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # TLS ends here: who is connected is what the connection says.
            headers=headers,
            timeout_keep_alive=60,  # Not below the protocol's own limit, which counts a trickle too.
            ssl_context_factory=None if context is None else lambda _config, _default: context,
        ),
        places,
        proxies,
        handshake_seconds,
    )
