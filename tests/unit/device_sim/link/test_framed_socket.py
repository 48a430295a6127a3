"""Both clients over WebSocket, with a server of wsproto's, an implementation by others: what no broker here does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Ping, Pong, Request

from device_sim.link.closure import Layer, Verdict
from device_sim.link.driver import Driver
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.link import Link
from device_sim.link.tls_dial import Endpoint, NotAdmitted
from provisioning.pki.role import Role
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.authority import Authority

CONNACK = b"\x20\x03\x00\x00\x00"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[None, None, None]]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@asynccontextmanager
async def opened(authority: Authority, driver: Driver, serve: Serve, deadline: float = 30.0) -> AsyncIterator[Link]:
    """Yield the link that *driver* opens to a server that answers as *serve* does."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = authority.issue("broker-1", role=Role.BROKER, group=None)
    context = server_context(server.pem, authority.pem, client_certificate=ClientCertificate.REQUIRED)
    device = client_context(authority.pem, authority.issue("meter-1").pem)
    driver.load()
    async with (
        await asyncio.start_server(served, "127.0.0.1", 0, ssl=context) as listener,
        KeepAlive() as keep_alive,
        asyncio.timeout(60),
    ):
        port = listener.sockets[0].getsockname()[1]
        endpoint = Endpoint("127.0.0.1", port, "localhost", websocket=True, path="/there")
        yield await driver.open(endpoint, device, "meter-1", keep_alive=keep_alive, deadline=deadline)


@pytest.mark.parametrize("driver", Driver)
async def test_a_server_that_pings_is_answered_and_one_that_leaves_is_believed(
    authority: Authority, driver: Driver
) -> None:
    """It keeps the connection open: what ends it is its frame, and ours answers that."""
    seen: list[Event] = []
    left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = WSConnection(ConnectionType.SERVER)
        while data := await reader.read(10_000):
            frames.receive_data(data)
            for event in frames.events():
                seen.append(event)
                match event:
                    case Request():
                        writer.write(frames.send(AcceptConnection(subprotocol="mqtt")))
                    case BytesMessage():
                        writer.write(frames.send(BytesMessage(CONNACK)) + frames.send(Ping(b"there?")))
                    case Pong():
                        writer.write(frames.send(CloseConnection(1001)))
                    case CloseConnection():
                        left.set_result(None)
        if not left.done():
            left.set_exception(AssertionError(f"it left without a word, after {seen}"))

    async with opened(authority, driver, serve) as link:
        closure = await link.closed
        await left
    request, _, pong, close = seen
    assert isinstance(request, Request)
    assert (request.target, bytes(pong.payload)) == ("/there", b"there?")  # type: ignore[attr-defined]
    assert request.host.startswith("localhost:")
    assert isinstance(close, CloseConnection)
    assert (closure.layer, closure.verdict) == (Layer.TCP, Verdict.AGAIN)


@pytest.mark.parametrize("driver", Driver)
@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "not upgraded", "HTTP/1.1 404 Not Found"),
        (b"", "not upgraded", "the peer closed the connection without an answer"),
        (None, "timeout", "no answer to the upgrade in time"),
    ],
)
async def test_what_does_not_become_a_websocket_is_told(
    authority: Authority, driver: Driver, answer: bytes | None, code: str, words: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        if answer is None:
            await reader.read()  # Until the client has given up.
        else:
            writer.write(answer)

    with pytest.raises(NotAdmitted) as refused:
        async with opened(authority, driver, serve, 30.0 if answer is not None else 0.5):
            pass
    closure = refused.value.closure
    assert (closure.layer, closure.code, closure.reason) == (Layer.WEBSOCKET, code, words)
    assert closure.verdict is Verdict.AGAIN
    assert closure.is_answer is (answer is not None)


@pytest.mark.parametrize("driver", Driver)
async def test_frames_that_no_server_may_send_end_the_connection(authority: Authority, driver: Driver) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = WSConnection(ConnectionType.SERVER)
        while data := await reader.read(10_000):
            frames.receive_data(data)
            for event in frames.events():
                if isinstance(event, Request):
                    writer.write(frames.send(AcceptConnection(subprotocol="mqtt")))
                elif isinstance(event, BytesMessage):
                    writer.write(b"\x81\x01x")

    with pytest.raises(NotAdmitted) as refused:
        async with opened(authority, driver, serve):
            pass
    closure = refused.value.closure
    assert (closure.layer, closure.code) == (Layer.WEBSOCKET, "broken protocol")
    assert "a frame of type 1" in closure.reason
