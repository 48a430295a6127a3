"""The endpoint for Prometheus and health checks: plain HTTP, on loopback unless configured otherwise.

There a browser gets no figures for a page of a name that points here (`provisioning.program.loopback`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Final

from broker.admin.health import Health
from broker.admin.http_messages import Request, Response, problem
from broker.admin.http_server import HttpServer
from broker.credentials.own_certificate import OwnCertificate
from broker.door.listening import ListenError
from broker.engine.engine import Engine
from broker.revocation.issuing_authorities import IssuingAuthorities
from broker.settings.config import BrokerConfig
from provisioning.program.host_and_port import with_port
from provisioning.program.loopback import is_nobodys_name
from provisioning.program.unbound_socket import unbound

_LOST_MILLISECONDS: Final = 30_000
"""As long as a client has for taking an answer."""


class MetricsEndpoint:
    """The page of one broker, while it is open; without a server there is none, and its URL is empty."""

    def __init__(self, server: HttpServer | None = None, url: str = "") -> None:
        self._server = server
        self.url = url

    async def close(self) -> None:
        """Stop answering."""
        if self._server is not None:
            await self._server.close()


async def open_metrics(
    config: BrokerConfig, engine: Engine, own: OwnCertificate, authorities: IssuingAuthorities
) -> MetricsEndpoint:
    """Serve the page, and `Health`, where *config* says, if at all. Raises `ListenError`."""
    if config.metrics_port is None:
        return MetricsEndpoint()
    from broker.admin.metrics_page import PATH, MetricsPage  # Imports a library that only this page needs.

    listening = listen(config.metrics_host, config.metrics_port, "metrics_port")
    page, health = MetricsPage(engine, own, authorities), Health(engine, own, authorities)
    public = config.unsafe_public_metrics

    async def handle(request: Request) -> Response:
        answer = health.answer(request)
        if answer is None and not (public or is_nobodys_name(request.host)):
            answer = problem(421, "HOST_NOT_LOCAL", "for this machine only: ask for localhost, or an address, in Host")
        return answer or await page.handle(request)

    server = HttpServer(handle, _anybody)
    await server.listen(listening)
    return MetricsEndpoint(server, f"http://{shown_address(listening)}{PATH}")


def listen(host: str, port: int, setting: str) -> socket.socket:
    """Return a socket that listens on *host* and *port*; raise `ListenError` naming *setting*."""
    try:
        with contextlib.ExitStack() as made:
            listening = made.enter_context(unbound(host))
            # Every connection's (tcp(7)). Without it the kernel keeps what a vanished peer was sent for minutes.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _LOST_MILLISECONDS)
            listening.setblocking(False)
            listening.bind((host, port))
            listening.listen()  # Only now is it certain that no other process does.
            made.pop_all()  # It is the caller's now.
    except (OSError, TypeError) as error:
        raise ListenError.of(setting, host, port, error) from error
    return listening


def shown_address(listening: socket.socket) -> str:
    """Return address and port in the form used in URLs."""
    host, port = listening.getsockname()[:2]
    return with_port(host, port)


def _anybody(_writer: asyncio.StreamWriter) -> str:
    return "anybody"
