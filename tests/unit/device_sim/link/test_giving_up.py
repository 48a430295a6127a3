"""A client that gives up, or that has to wait, leaves nothing behind in its loop, whichever it is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from device_sim.link.driver import Driver
from device_sim.link.keep_alive import KeepAlive
from device_sim.link.link import NotConnected
from device_sim.link.tls_dial import Endpoint
from provisioning.pki.role import Role
from provisioning.pki.tls import ClientCertificate, client_context, server_context
from tests.support.authority import Authority

CONNACK = b"\x20\x03\x00\x00\x00"
PINGREQ, PINGRESP, DISCONNECT = b"\xc0\x00", b"\xd0\x00", b"\xe0\x00"
TO_ACKNOWLEDGE = b"\x32\x06\x00\x01t\x00\x07\x00"
"""A message of QoS 1, of MQTT 5."""
MORE_THAN_A_KERNEL_TAKES = 16_000_000

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.mark.parametrize("driver", Driver)
async def test_who_has_sent_what_waited_is_not_woken_to_send(driver: Driver) -> None:
    """A loop that is told again and again that it may write does nothing else."""
    authority = Authority()
    reads, last, payload = asyncio.Event(), asyncio.Event(), b"x" * 100_000

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(CONNACK)
        await reads.wait()
        tail = b""
        while data := await reader.read(1_000_000):
            tail = (tail + data)[-10:]
            if tail.endswith(b"the last"):
                last.set()
        writer.close()

    server = authority.issue("broker-1", role=Role.BROKER, group=None)
    context = server_context(server.pem, authority.pem, client_certificate=ClientCertificate.REQUIRED)
    driver.load()
    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listener,
        KeepAlive() as keep_alive,
        asyncio.timeout(60),
    ):
        endpoint = Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], "localhost")
        device = client_context(authority.pem, authority.issue("meter-1").pem)
        link: Any = await driver.open(endpoint, device, "meter-1", keep_alive=keep_alive)
        while not link._writer_added:  # Until the kernel takes no more.
            link.publish("fleet/meters/meter-1/telemetry", payload, 0)
            await asyncio.sleep(0.001)
        link.publish("fleet/meters/meter-1/telemetry", b"the last", 0)
        reads.set()
        await last.wait()
        assert not asyncio.get_running_loop().remove_writer(link._descriptor)
        await link.close()


@asynccontextmanager
async def unable_to_send(serve: Serve) -> AsyncIterator[Any]:
    """Yield a connection that takes nothing more, to a broker that does not read, and goes on with *serve*."""
    authority = Authority()

    async def admit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.write(CONNACK)
        await serve(reader, writer)
        writer.transport.abort()

    server = authority.issue("broker-1", role=Role.BROKER, group=None)
    context = server_context(server.pem, authority.pem, client_certificate=ClientCertificate.REQUIRED)
    async with (
        await asyncio.start_server(admit, "127.0.0.1", 0, ssl=context) as listener,
        KeepAlive() as keep_alive,
        asyncio.timeout(60),
    ):
        endpoint = Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], "localhost")
        device = client_context(authority.pem, authority.issue("meter-1").pem)
        link: Any = await Driver.LIGHT.open(endpoint, device, "meter-1", keep_alive=keep_alive)
        link.publish("fleet/meters/meter-1/telemetry", b"x" * MORE_THAN_A_KERNEL_TAKES, 0)
        with pytest.raises(NotConnected):
            link.publish("fleet/meters/meter-1/telemetry", b"x", 0)
        yield link


async def test_who_can_send_nothing_more_keeps_nobody_else_from_being_pinged() -> None:
    """One task pings all clients of a fleet. The broker reads again, and answers."""
    reads = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reads.wait()
        tail = b""
        while data := await reader.read(1_000_000):
            tail = (tail + data)[-2:]
            if tail == PINGREQ:
                writer.write(PINGRESP + DISCONNECT)

    async with unable_to_send(serve) as link:
        link._sent_at -= link._alive
        link.loop_misc()
        assert link._pinged
        reads.set()
        assert (await link.closed).number == 0
        assert not link._pinged


async def test_who_can_send_nothing_more_can_leave() -> None:
    left = asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await left.wait()

    async with unable_to_send(serve) as link:
        assert (await link.close()).number == 0
        left.set()


@pytest.mark.parametrize(("packet", "code"), [(TO_ACKNOWLEDGE, "error"), (PINGREQ, "broken protocol")])
async def test_a_broker_that_sends_and_does_not_read_is_left(packet: bytes, code: str) -> None:
    """What is to be answered, and what no broker may send: neither an acknowledgement nor DISCONNECT can be sent."""
    full, left = asyncio.Event(), asyncio.Event()

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await full.wait()
        writer.write(packet)
        await left.wait()

    async with unable_to_send(serve) as link:
        full.set()
        assert (await link.closed).code == code
        left.set()


@pytest.mark.parametrize("driver", Driver)
async def test_who_is_cancelled_before_it_is_admitted_has_left(driver: Driver) -> None:
    authority = Authority()
    connecting, left = asyncio.Event(), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(1000):
                connecting.set()  # It has sent CONNECT, which nobody answers.
        left.set()
        writer.close()

    server = authority.issue("broker-1", role=Role.BROKER, group=None)
    context = server_context(server.pem, authority.pem, client_certificate=ClientCertificate.REQUIRED)
    driver.load()
    async with (
        await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as listener,
        KeepAlive() as keep_alive,
        asyncio.timeout(60),
    ):
        endpoint = Endpoint("127.0.0.1", listener.sockets[0].getsockname()[1], "localhost")
        device = client_context(authority.pem, authority.issue("meter-1").pem)
        opening = asyncio.create_task(driver.open(endpoint, device, "meter-1", keep_alive=keep_alive))
        await connecting.wait()
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        await left.wait()
