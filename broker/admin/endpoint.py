"""Where the admin API is reached: a Unix socket that belongs to the broker's user."""

from __future__ import annotations

import asyncio
from pathlib import Path

from broker.admin import unix_socket
from broker.admin.api import AdminApi, Served
from broker.admin.http_server import HttpServer

OFF = "off"
SOCKET_NAME = "admin.sock"


def socket_path(setting: str | None, state_dir: Path) -> Path | None:
    """Return where the socket is for the setting ``admin_socket``; None: nowhere."""
    if setting == OFF:
        return None
    return state_dir / SOCKET_NAME if setting is None else Path(setting)


class AdminEndpoint:
    """The admin API of one broker, while it is open."""

    def __init__(self, served: Served, path: Path | None) -> None:
        self._path = path
        self._server = HttpServer(AdminApi(served).handle, _local_user)

    async def open(self) -> None:
        """Begin to answer. Raises `AdminSocketError`."""
        if self._path is not None:
            await self._server.listen(unix_socket.open_socket(self._path))

    async def close(self) -> None:
        """Answer nobody any more."""
        await self._server.close()
        if self._path is not None:
            unix_socket.remove(self._path)


def _local_user(writer: asyncio.StreamWriter) -> str:
    return unix_socket.peer_of(writer.get_extra_info("socket"))
