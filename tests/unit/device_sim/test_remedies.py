"""What a tester is told about a broker that nobody reaches: what answers there, and what he can do."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from device_sim.link.closure import SERVER_CERTIFICATE, Closure, Layer, Verdict
from device_sim.link.tls_dial import Endpoint, NotAdmitted, dial
from device_sim.remedies import remedy, with_remedy
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.pki import Pki

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


async def _http(reader: Reader, writer: Writer) -> None:
    await reader.read(100)
    writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
    await writer.drain()
    writer.close()


async def _reset(reader: Reader, writer: Writer) -> None:
    """Reset the connection, as mosquitto does without TLS: it closes with the rest of the hello unread."""
    await reader.read(1)
    made = writer.get_extra_info("socket")
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@asynccontextmanager
async def listening(answer: Callable[[Reader, Writer], object], **options: object) -> AsyncIterator[int]:
    server = await asyncio.start_server(answer, "127.0.0.1", 0, **options)  # type: ignore[arg-type]
    async with server:
        yield server.sockets[0].getsockname()[1]


async def answer_of(port: int, anchors: Path, name: str = "localhost") -> Closure:
    with pytest.raises(NotAdmitted) as refused:
        await dial(Endpoint("127.0.0.1", port, name), client_context(anchors, None), deadline=20)
    return refused.value.closure


async def test_each_answer_of_a_wrong_place_has_a_remedy(tmp_path: Path) -> None:
    pki, other = Pki(), Pki()
    anchors = pki.write_anchors(tmp_path)
    async with listening(_http) as port:
        assert "speaks no TLS" in remedy(await answer_of(port, anchors))
    async with listening(_reset) as port:
        assert "One without TLS ends so" in remedy(await answer_of(port, anchors))
    assert "start the broker" in remedy(await answer_of(port, anchors))
    broker = server_context(pki.broker().credential, pki.anchors, client_certificate=ClientCertificate.REQUIRED)
    async with listening(_http, ssl=broker) as port:
        assert "--server-name" in remedy(await answer_of(port, anchors, "elsewhere"))
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        assert "trust anchors" in remedy(await answer_of(port, other.write_anchors(theirs)))


async def test_who_takes_a_connection_and_says_nothing_is_told_from_one_who_takes_none(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # Connections are taken by the kernel alone.
        endpoint = Endpoint("127.0.0.1", server.getsockname()[1], "localhost")
        with pytest.raises(NotAdmitted) as refused:
            await dial(endpoint, client_context(Pki().write_anchors(tmp_path), None), deadline=0.1)
    closure = refused.value.closure
    assert str(closure).startswith("tls timeout (it takes the connection, ")
    assert (closure.is_answer, closure.verdict) == (False, Verdict.AGAIN)
    assert remedy(closure) == "is it the broker that listens there, and does it still run?"


def test_what_the_broker_says_itself_gets_no_second_word() -> None:
    closure = Closure(Layer.MQTT, "0x87 Not authorized", "REVOKED", 0.0, 0x87)
    assert with_remedy("refused", closure) == "refused"


@pytest.mark.parametrize("reason", ["certificate has expired", "certificate is not yet valid"])
def test_a_broker_whose_certificate_is_out_of_date_has_a_remedy(reason: str) -> None:
    closure = Closure(Layer.TLS, SERVER_CERTIFICATE, f"we refuse the server: {reason}", 0.0)
    assert remedy(closure) == "renew the broker's certificate, or set this machine's clock"
