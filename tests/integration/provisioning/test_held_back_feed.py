"""Somebody on the way holds the feed back: each heartbeat comes before it is missed, and later than the one before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from provisioning.client.feed import follow_together
from provisioning.client.feed_reader import Current, FeedEvent, FeedLost, RevocationEvent
from tests.support.enrolled import enrol
from tests.support.provisioning import ProvisioningService

_HELD_SECONDS = 2.5


class InTheWay:
    """Passes on TLS records; when it `holds`, one after the other, a while apart."""

    def __init__(self) -> None:
        self.holds = False
        self.held: asyncio.Queue[bytes] = asyncio.Queue()
        """What the latest connection's records are; empty at its end."""

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on what *reader* has, at once."""
        try:
            with suppress(ConnectionError):
                while some := await reader.read(65536):
                    writer.write(some)
        finally:
            await _close(writer)

    async def hold_back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on the records that *reader* has."""
        held: asyncio.Queue[bytes] = asyncio.Queue()
        self.held = held
        taking = asyncio.create_task(self._take(reader, held))
        try:
            with suppress(ConnectionError):
                while record := await held.get():
                    if self.holds:
                        await asyncio.sleep(_HELD_SECONDS)
                    writer.write(record)
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
            await _close(writer)

    async def _take(self, reader: asyncio.StreamReader, held: asyncio.Queue[bytes]) -> None:
        """Take the records as they come: the service notices nothing."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readexactly(5)
                held.put_nowait(head + await reader.readexactly(int.from_bytes(head[3:])))
        held.put_nowait(b"")


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


@asynccontextmanager
async def in_the_way_of(service: ProvisioningService) -> AsyncIterator[tuple[str, InTheWay]]:
    """Yield another address of *service*, and who is in the way there."""
    attacker = InTheWay()
    ways: list[asyncio.Task[None]] = []

    async def arrived(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs, ours = await asyncio.open_connection("127.0.0.1", urlsplit(service.https).port)
        ways.append(asyncio.create_task(attacker.pass_on(reader, ours)))
        ways.append(asyncio.create_task(attacker.hold_back(theirs, writer)))

    server = await asyncio.start_server(arrived, "127.0.0.1", 0)
    try:
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}", attacker
    finally:
        server.close()
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)


async def test_a_feed_that_is_held_back_is_given_up_and_the_next_tells_what_was(tmp_path: Path) -> None:
    """It was read on for an hour, and a revocation heard of half an hour late."""

    async def falls_behind(feed: AsyncIterator[list[FeedEvent]], attacker: InTheWay) -> None:
        async for _ in feed:
            assert attacker.held.qsize() < 60, "nobody notices"

    with ProvisioningService.copied(tmp_path / "fleet", {"feed_heartbeat_seconds": 0.4}) as service:
        (device,) = await asyncio.to_thread(enrol, service, "meter-1")
        async with in_the_way_of(service) as (url, attacker), asyncio.timeout(60):
            async with aclosing(followed(service, url)) as feed:
                for _ in range(2):
                    assert all(each == Current(0) for each in await anext(feed))
                attacker.holds = True
                while attacker.held.qsize() < 2:
                    await asyncio.sleep(0.05)
                await asyncio.to_thread(service.revoke, device=device.name, reason="keyCompromise")
                with pytest.raises(FeedLost, match=r"is held back: \d+\.\d s behind"):
                    await falls_behind(feed, attacker)
            attacker.holds = False
            async with aclosing(followed(service, url)) as feed:
                first, *_ = await anext(feed)
                assert isinstance(first, RevocationEvent)
                assert first.device == device.name


def followed(service: ProvisioningService, url: str) -> AsyncGenerator[list[FeedEvent], None]:
    """Follow *service* at *url*, and find six seconds of silence too long: a busy machine takes less."""
    return follow_together(url, service.bundle, service.operator, 0, heartbeat=2.0)
