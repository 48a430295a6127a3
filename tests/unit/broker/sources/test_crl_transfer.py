"""A list that comes slowly arrives, and one that does not come on is given up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker.admission.bundle import ListTerms, TrustBundle
from broker.admission.trust import Trust
from broker.settings.trust_settings import StatusPolicy
from broker.sources import crl_transfer
from broker.sources.crl_intake import CrlIntake
from broker.sources.crl_transfer import CrlTransfers
from broker.sources.crl_urls import CrlUrls
from provisioning.client.list_download import NotFetched
from provisioning.pki.crl import CrlProblem
from tests.support.crl import crl
from tests.support.pki import shared_pki
from tests.support.wire import MemoryBroker

PKI = shared_pki()
PATIENCE = 20
PIECES = 12
FIRST = 3.0
"""Seconds within which the first piece comes on any machine."""


class SlowServer:
    """Sends a list in pieces, with a pause before each but the first."""

    def __init__(self, content: bytes, pause: float, pieces: int = PIECES) -> None:
        self.content, self.pause, self.pieces = content, pause, pieces
        self.asked = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(self.content))
            size = -(-len(self.content) // PIECES)
            for number in range(self.pieces):
                try:  # A server closes when its last connection has ended.
                    async with asyncio.timeout(self.pause if number else 0.0):
                        return await self.until_gone(reader)
                except TimeoutError:
                    pass
                writer.write(self.content[number * size : (number + 1) * size])
                await writer.drain()
            await self.until_gone(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def until_gone(self, reader: asyncio.StreamReader) -> None:
        """Wait until the asker goes."""
        await reader.read()


@asynccontextmanager
async def serving(server: SlowServer) -> AsyncIterator[str]:
    async with await asyncio.start_server(server.answer, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/ca.crl"


def following(broker: MemoryBroker, url: str) -> CrlUrls:
    terms = ListTerms(StatusPolicy(0.0), from_certificates=True)
    broker.engine.admission.believe(Trust([TrustBundle("", [PKI.issuing.certificate], lists=terms)], 1))
    clock = asyncio.get_running_loop().time
    urls = CrlUrls(CrlIntake(broker.engine, clock), 900.0, clock)
    urls.configure([("", url)])
    return urls


async def test_a_list_arrives_that_takes_longer_than_the_first_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 KB over 20 kbit/s; each attempt within a total limit would begin again at the first byte."""
    monkeypatch.setattr(crl_transfer, "FIRST_SECONDS", FIRST)
    monkeypatch.setattr(crl_transfer, "_LEAST_RATE", 10)
    broker, server = MemoryBroker(), SlowServer(crl(PKI.issuing), pause=1.1 * FIRST / (PIECES - 1))
    async with serving(server) as url, asyncio.timeout(PATIENCE):
        urls = following(broker, url)
        await urls.fetch(url, "")
        assert len(broker.engine.admission.status.lists.held) == 1
        assert server.asked == 1
        await urls.close()


async def test_one_that_does_not_come_on_is_given_up_and_the_log_says_how_much_came(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(crl_transfer, "FIRST_SECONDS", FIRST)
    monkeypatch.setattr(crl_transfer, "_LEAST_RATE", 10_000)
    broker, server = MemoryBroker(), SlowServer(crl(PKI.issuing), pause=FIRST / PIECES, pieces=8)
    async with serving(server) as url, asyncio.timeout(PATIENCE):
        urls = following(broker, url)
        await urls.fetch(url, "")
        assert broker.engine.admission.status.lists.held == []
        assert broker.metrics.revocation_alarms[CrlProblem.CRL_UNREADABLE] == 1
        await urls.close()
    assert "too slow: " in capsys.readouterr().out


async def test_who_gives_up_waiting_does_not_end_the_transfer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client waits three seconds for its status, and newcomers follow each other: none of them would have it."""
    monkeypatch.setattr(crl_transfer, "FIRST_SECONDS", float(PATIENCE))
    broker, server = MemoryBroker(), SlowServer(crl(PKI.issuing), pause=0.05)
    async with serving(server) as url, asyncio.timeout(PATIENCE):
        urls = following(broker, url)
        impatient = asyncio.create_task(urls.fetch(url, ""))
        while not server.asked:
            await asyncio.sleep(0.01)
        impatient.cancel()
        await asyncio.gather(impatient, return_exceptions=True)
        await urls.fetch(url, "")
        assert len(broker.engine.admission.status.lists.held) == 1
        assert server.asked == 1
        await urls.close()


async def test_the_start_does_not_wait_for_a_list_that_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.sources.crl_urls.FIRST_SECONDS", 0.1)
    server = SlowServer(b"", pause=PATIENCE * 2)
    async with serving(server) as url, asyncio.timeout(PATIENCE):
        urls = following(MemoryBroker(), url)
        await urls.fetch_due()
        await urls.close()


async def test_slow_servers_leave_room_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many transfers crawl, two of four places are free after the first seconds."""
    monkeypatch.setattr(crl_transfer, "FIRST_SECONDS", 0.2)
    monkeypatch.setattr(crl_transfer, "_LEAST_RATE", 1)
    transfers, crawling = CrlTransfers(), 0

    async def crawl() -> None:
        nonlocal crawling
        async with transfers.places, transfers.one() as transfer:
            crawling += 1
            try:
                while True:
                    await asyncio.sleep(0.02)
                    transfer.arrived(1000)
            finally:
                crawling -= 1

    async with asyncio.timeout(PATIENCE):
        crawls = [asyncio.create_task(crawl()) for _ in range(4)]
        done, pending = await asyncio.wait(crawls, return_when=asyncio.FIRST_EXCEPTION)
        while len(pending) > 2:
            more, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
            done |= more
        assert all(isinstance(each.exception(), NotFetched) for each in done)
        assert crawling == transfers.long == 2
        async with transfers.places, transfers.one():  # There is a place.
            pass
        for each in pending:
            each.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    assert transfers.long == 0
