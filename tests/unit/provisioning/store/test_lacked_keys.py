"""A process says which CAs' keys it cannot use, to whoever activates one elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import Connection, make_url

from provisioning.store import announcements
from provisioning.store.lacked_keys import TURN_SECONDS, lacking, number_of, said_in
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
                    while not 0 < _hundredths_to_the_next_sign_of_life(other) <= 500:
                        await asyncio.sleep(0.01)
                    assert said_in(other, 60) > 60 + TURN_SECONDS
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


def _hundredths_to_the_next_sign_of_life(other: Connection) -> int:
    """Return when the server asks the machine of the session with the locks whether it still is; 0: other data is due.

    By its usual settings that is after two hours, for which a machine that is gone would lack a key.
    """
    client, server = other.execute(
        text(
            "SELECT client_port, inet_server_port() FROM pg_stat_activity JOIN pg_locks USING (pid) "
            "WHERE locktype = 'advisory' AND objsubid = 2 LIMIT 1"
        )
    ).one()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, _, timer, *_ = line.split()
        if (local[-4:], remote[-4:]) == (f"{server:04X}", f"{client:04X}") and timer.startswith("02:"):
            return int(timer[3:], 16)
    return 0
