"""A client that sends half of a KeyUpdate, and keeps the rest back: OpenSSL takes it for one that shakes hands."""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path

import pytest

from broker.sockets.transport import TlsTransport
from provisioning.pki.tls import client_context
from tests.support.broker_process import wait_until
from tests.support.half_message import half_of_a_key_update
from tests.support.pki import Pki, shared_pki
from tests.support.tls_server import Server, visit


@pytest.fixture
def pki() -> Pki:
    return shared_pki()


async def test_who_keeps_back_half_of_a_message_is_known_and_is_lost_when_something_is_written(
    server: Server, pki: Pki, tmp_path: Path
) -> None:
    """He was judged by nobody any more, and what could not be written to him was tried again without a pause."""
    context = client_context(pki.anchors, pki.device("meter-1").credential)
    context.keylog_filename = str(tmp_path / "keys")
    loop = asyncio.get_running_loop()

    def wait(connection: ssl.SSLSocket) -> bytes:
        connection.sendall(b"hello")
        assert connection.recv(100) == b"HELLO"
        os.write(connection.fileno(), half_of_a_key_update(context, sent=1))
        told, transport = server.told, server.told.transport if server.told is not None else None
        assert told is not None
        assert transport is not None
        wait_until(lambda: unfinished(transport), "the half is read")

        async def write() -> tuple[bytes | None, list[bytes]]:
            before = transport.presented()
            transport.write([b"lost"])
            return before

        certificate, path = asyncio.run_coroutine_threadsafe(write(), loop).result(30)
        assert (certificate, path) == (told.certificate, told.path)
        return connection.recv(100)

    told, end = await visit(server, context, wait)
    assert end == b""
    assert await asyncio.wait_for(told.ended, 30) == "CONNECTION_LOST"
    assert told.detail == "half of a TLS message is missing"


def unfinished(transport: TlsTransport) -> bool:
    """Whether OpenSSL waits for the rest of a message of TLS itself."""
    try:
        return not transport._tls.getpeercert(True)  # type: ignore[union-attr]
    except ValueError:
        return True
