"""A server that is silent is waited for as long as anybody waits, and no longer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

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


async def test_one_that_gives_up_refuses_nobody_behind_it_and_the_log_does_not_blame_the_store() -> None:
    asked: list[Connection] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        url = f"postgresql+psycopg://nobody@127.0.0.1:{silent.getsockname()[1]}/nothing?connect_timeout=600"
        database = Database(url)
        works = [asyncio.create_task(database.read(asked.append)) for _ in range(6)]  # Two have no thread yet.
        with contextlib.ExitStack() as stack, capture_logs() as logs:
            for _ in range(4):
                stack.enter_context((await asyncio.to_thread(silent.accept))[0])
            async with asyncio.timeout(60):
                for gives_up in (works[0], works[4]):
                    gives_up.cancel()
                    await asyncio.wait({gives_up})
                    waits = set(works) - {works[0], gives_up}
                    await asyncio.wait(waits, timeout=0.02, return_when=asyncio.FIRST_COMPLETED)
                    assert not any(work.done() for work in waits), "who came before the last began"
                    stack.enter_context((await asyncio.to_thread(silent.accept))[0])  # Another's try.
                for work in works:
                    work.cancel()
                await asyncio.gather(*works, return_exceptions=True)
                await database.close()
    assert logs == []
    assert not asked
