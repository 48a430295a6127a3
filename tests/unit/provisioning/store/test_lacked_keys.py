"""A process says which CAs' keys it cannot use, to whoever activates one elsewhere."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from provisioning.store import announcements
from provisioning.store.lacked_keys import lacking, number_of
from tests.support.notes import PATIENCE
from tests.support.postgresql import PostgresqlServer

_LOW, _HIGH = bytes([1] * 20), bytes([255, 7] * 10)


async def test_what_a_process_lacks_is_seen_while_it_runs_and_until_it_has_it(
    postgresql: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "_ASK_SECONDS", 0.02)
    lacked = {number_of(_LOW), number_of(_HIGH)}
    assert number_of(_HIGH) < 0 < number_of(_LOW), "as PostgreSQL's numbers are signed, and those in its list are not"
    with postgresql.database() as url:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        heard = asyncio.Event()
        listening = asyncio.create_task(
            announcements.listen(make_url(url), heard.set, lambda: frozenset(lacked)), name="another process"
        )
        try:
            async with asyncio.timeout(PATIENCE):
                await heard.wait()
                with engine.connect() as other:
                    for key_id in (_LOW, _HIGH):
                        while lacking(other, key_id) != ["127.0.0.1"]:
                            await asyncio.sleep(0.01)
                    lacked.remove(number_of(_HIGH))
                    while lacking(other, _HIGH):
                        await asyncio.sleep(0.01)
                    assert lacking(other, _LOW)
                    listening.cancel()
                    while lacking(other, _LOW):
                        await asyncio.sleep(0.01)
        finally:
            listening.cancel()
            await asyncio.wait([listening])
            engine.dispose()
