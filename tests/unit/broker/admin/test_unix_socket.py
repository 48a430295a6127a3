"""The admin API's socket: whose it is, by a name that is longer than an address, and what becomes of that name."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from broker.admin.http_messages import Request, Response
from broker.admin.http_server import HttpServer
from broker.admin.unix_socket import AdminSocketError, address_of, open_socket, remove


async def _hear(request: Request) -> Response:
    return Response.json(request.path)


async def test_a_long_name_is_looked_up_by_nobody_else_whose_descriptor_may_have_its_number(tmp_path: Path) -> None:
    """Python 3.13's event loop did, and a broker did not start if one of its threads had just opened a file."""
    path = tmp_path / ("long" * 30) / "admin.sock"
    listening, server = open_socket(path), HttpServer(_hear, lambda _: "me")
    with ExitStack() as opened:
        for _ in range(64):  # One of them has the number by which the name was bound.
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        await server.listen(listening)
    with address_of(path) as address:
        reader, writer = await asyncio.open_unix_connection(address)
    writer.write(b"GET /here HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\r\n")
    assert b'"/here"' in await reader.read()
    writer.close()
    await server.close()
    assert path.is_socket()  # Whoever has opened it removes its name, here as on every version.
    remove(path)
    assert not path.exists()


def test_the_socket_is_private_long_paths_work_and_only_a_dead_ones_name_is_taken(tmp_path: Path) -> None:
    path = tmp_path / ("d" * 100) / "admin.sock"
    with open_socket(path) as first:
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(AdminSocketError, match="in use by another broker"):
            open_socket(path)
        assert first.family is socket.AF_UNIX
        first.listen(0)  # The kernel takes one more than that, which is whoever has just asked: the next would wait.
        with pytest.raises(AdminSocketError, match="in use by another broker"):
            open_socket(path)
    open_socket(path).close()
    path.unlink()
    path.write_text("mine")
    with pytest.raises(AdminSocketError, match="is a file and no socket"):
        open_socket(path)
    assert path.read_text() == "mine"
    with pytest.raises(AdminSocketError, match="set admin_socket to a place"):
        open_socket(path / "below")
    with pytest.raises(AdminSocketError, match="is a directory: set a path in it"):
        open_socket(tmp_path)
