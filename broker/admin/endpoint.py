"""The endpoints of the admin API: a Unix socket that belongs to the broker's user, and a TLS port for operators."""

from __future__ import annotations

import asyncio
from pathlib import Path

from broker.admin import unix_socket
from broker.admin.api import BODIES, AdminApi, Served
from broker.admin.http_server import HttpServer
from broker.admin.operator_door import OperatorDoor, Operators
from broker.settings.config import BrokerConfig


class AdminEndpoint:
    """The admin API of one broker, while it is open."""

    def __init__(self, served: Served, config: BrokerConfig) -> None:
        self._config = config
        self._opened: Path | None = None
        """The socket that this broker created and will remove."""
        self._server = HttpServer(AdminApi(served, _anybody).handle, _local_user, BODIES)
        operators = Operators(served.engine, config.admin_changers)
        api = AdminApi(served, operators.may_change)
        self._remote = HttpServer(api.handle, operators.identify, BODIES, operators.settle)
        self._door = OperatorDoor(self._remote, operators, lambda: served.listeners[0].context)

    @property
    def url(self) -> str:
        """The URL for remote operators; empty: none."""
        return self._door.url

    async def open(self) -> None:
        """Begin to answer requests. Raises `AdminSocketError` or `ListenError`."""
        path = unix_socket.socket_path(self._config.admin_socket, self._config.state_dir)
        if path is not None:
            listening = unix_socket.open_socket(path)
            self._opened = path
            await self._server.listen(listening)
        if self._config.admin_port is not None:
            self._door.open(self._config.admin_host, self._config.admin_port)

    async def close(self) -> None:
        """Stop answering."""
        await self._door.close()
        await self._remote.close()
        await self._server.close()
        if self._opened is not None:
            unix_socket.remove(self._opened)


def _anybody(_caller: str) -> bool:
    return True  # Only the broker's user can reach the socket.


def _local_user(writer: asyncio.StreamWriter) -> str:
    return unix_socket.peer_of(writer.get_extra_info("socket"))
