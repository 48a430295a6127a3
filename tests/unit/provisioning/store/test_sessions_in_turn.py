"""An address behind which sessions lead to a primary and to its standby in turn, as behind a name that has both."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import socketserver
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Final, Self

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Connection, Engine
from structlog.testing import capture_logs

from provisioning.errors import Code, Refused
from provisioning.revocation.feed import RevocationFeed
from provisioning.store.database import Database
from tests.support.postgresql import PostgresqlServer

PATIENCE = 60.0


class InTurn(socketserver.ThreadingTCPServer):
    """Leads each connection to the next one of *ports*, or to the first while *leads_to_first*; ends them all."""

    def __init__(self, *ports: int) -> None:
        super().__init__(("127.0.0.1", 0), Passage)
        self._ports = itertools.cycle(ports)
        self._first = ports[0]
        self.leads_to_first = False
        self.passed: Final[list[socket.socket]] = []

    def end_sessions(self) -> None:
        """End all that there are."""
        while self.passed:
            with contextlib.suppress(OSError):
                self.passed.pop().shutdown(socket.SHUT_RDWR)

    @property
    def next_port(self) -> int:
        return self._first if self.leads_to_first else next(self._ports)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.01,)).start()
        return self

    def server_close(self) -> None:
        """Stop, and end all that there are."""
        self.shutdown()
        self.end_sessions()
        super().server_close()


class Passage(socketserver.BaseRequestHandler):
    """One connection: its bytes are passed on, both ways, until one side ends it."""

    def handle(self) -> None:
        """Pass on."""
        assert isinstance(self.server, InTurn)
        with socket.create_connection(("127.0.0.1", self.server.next_port)) as there:
            self.server.passed.append(there)
            back = threading.Thread(target=_pass_on, args=(there, self.request))
            back.start()
            _pass_on(self.request, there)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def turns() -> Iterator[InTurn]:
    with (
        PostgresqlServer() as primary,
        PostgresqlServer(standby_of=primary) as standby,
        InTurn(primary.port, standby.port) as turns,
    ):
        yield turns


@contextlib.asynccontextmanager
async def opened(turns: InTurn) -> AsyncIterator[Database]:
    database = Database(f"postgresql+psycopg://fleet@127.0.0.1:{turns.server_address[1]}/fleet_template")
    _open_others(database._writer._engine)
    try:
        yield database
    finally:
        await database.close()


def _open_others(engine: Engine) -> None:
    """Open another session of *engine* whenever one is about to be used, as another thread may."""
    here = threading.local()

    @event.listens_for(engine, "checkout", insert=True)
    def open_another(_session: object, _record: object, _proxy: object) -> None:
        if getattr(here, "opening", False):
            return
        here.opening = True
        try:
            engine.raw_connection().close()
        finally:
            here.opening = False


def at_primary(connection: Connection) -> bool:
    return not connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar_one()


@pytest.mark.parametrize("ask", ["look", "read", "write"])
async def test_while_sessions_lead_here_and_there_everything_is_refused_with_the_remedy(
    turns: InTurn, ask: str
) -> None:
    """SQLAlchemy tries twice, and then raises an error of its own, which nobody took for what it is."""
    async with opened(turns) as database:
        with pytest.raises(Refused) as caught:
            await getattr(database, ask)(at_primary)
        assert caught.value.code is Code.UNAVAILABLE
        assert "target_session_attrs=read-write" in str(caught.value.__cause__)
        turns.leads_to_first = True
        assert await getattr(database, ask)(at_primary)


async def test_a_feed_outlives_it(turns: InTurn) -> None:
    async with opened(turns) as database:
        turns.leads_to_first = True
        feed = RevocationFeed(database, 0.01)
        await feed.start()
        reading = asyncio.create_task(feed.run())
        turns.leads_to_first = False
        try:
            with capture_logs() as logs:
                turns.end_sessions()
                async with asyncio.timeout(PATIENCE):
                    while "FEED_NOT_READ" not in {each.get("code") for each in logs}:
                        assert not reading.done(), reading.exception()
                        await asyncio.sleep(0.01)
            turns.leads_to_first = True
            since = asyncio.get_running_loop().time()
            async with asyncio.timeout(PATIENCE):
                while feed._looked_at < since:
                    assert not reading.done(), reading.exception()
                    await asyncio.sleep(0.01)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
