"""What silent connections cost a broker is what it uses more than without them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from device_sim.attack import load_cases
from device_sim.attack.target import BrokenPromise, Impossible


async def outcome_of(shares: Sequence[float], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what is said of a broker that uses these *shares* of a core, one after the other."""
    left = list(shares)

    async def share(_process: int) -> float:
        return left.pop(0)

    monkeypatch.setattr(load_cases, "_share", share)
    monkeypatch.setattr(load_cases, "_WATCHED", 0.0)
    server = await asyncio.start_server(lambda _reader, writer: writer.transport.abort(), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    scene: Any = SimpleNamespace(target=SimpleNamespace(broker_pid=1, endpoint=SimpleNamespace(host=host, port=port)))
    try:
        return str((await load_cases._idle_load(scene)).figures)
    except (BrokenPromise, Impossible) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ((0.0, 0.0), "0% of a core"),
        ((0.45, 0.6), "15% of a core"),
        ((0.2, 0.1), "0% of a core"),
        ((0.1, 0.7), "BrokenPromise: 20 connections that say nothing keep the broker busy for 60% of the time"),
        ((0.7,), "Impossible: the broker is busy for 70% of the time before anybody connects"),
    ],
)
async def test_what_a_broker_does_anyway_is_not_laid_to_silent_connections(
    shares: Sequence[float], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was, up to a failed case: the whole of its processor time was counted."""
    assert await outcome_of(shares, monkeypatch) == said
