"""A server that is silent is waited for as long as anybody waits, and no longer."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sqlalchemy.engine import Connection

from provisioning.store.database import Database


@pytest.mark.parametrize("way", [Database.read, Database.write, Database.look])
async def test_who_is_cancelled_does_not_wait_for_a_connection_but_others_may(
    way: Callable[..., Coroutine[Any, Any, None]],
) -> None:
    asked: list[Connection] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        url = f"postgresql+psycopg://nobody@127.0.0.1:{silent.getsockname()[1]}/nothing?connect_timeout=600"
        database = Database(url)
        works = [asyncio.create_task(way(database, asked.append)) for _ in range(2)]
        with (await asyncio.to_thread(silent.accept))[0]:
            works[0].cancel()
            if way is not Database.read:  # Each has a connection of its own.
                await asyncio.sleep(0.25)
                assert not any(work.done() for work in works)
            works[1].cancel()
            async with asyncio.timeout(60):
                ended = await asyncio.gather(*works, return_exceptions=True)
                await database.close()
    assert [type(each) for each in ended] == [asyncio.CancelledError] * 2
    assert not asked
