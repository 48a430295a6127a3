from __future__ import annotations

import asyncio

import pytest

from device_sim.link.keep_alive import KeepAlive


class Client:
    def __init__(self) -> None:
        self.swept = 0
        self.enough = asyncio.Event()

    def loop_misc(self) -> None:
        self.swept += 1
        if self.swept == 3:
            self.enough.set()


async def test_every_client_is_swept_again_and_again() -> None:
    clients = [Client() for _ in range(25)]
    async with KeepAlive(period=0.05) as keep_alive, asyncio.timeout(10):
        for client in clients:
            keep_alive.add(client, 60)
        await asyncio.gather(*(client.enough.wait() for client in clients))
        # Spread evenly: nobody is swept twice before everybody was once.
        assert max(client.swept for client in clients) - min(client.swept for client in clients) <= 1


async def test_a_client_that_is_discarded_is_left_alone() -> None:
    gone, stays = Client(), Client()
    async with KeepAlive(period=0.05) as keep_alive, asyncio.timeout(10):
        keep_alive.add(gone, 60)
        keep_alive.add(stays, 60)
        keep_alive.discard(gone)
        keep_alive.discard(gone)
        await stays.enough.wait()
    assert gone.swept == 0


async def test_a_sweep_that_fails_is_not_swallowed() -> None:
    class Broken:
        def __init__(self) -> None:
            self.called = asyncio.Event()

        def loop_misc(self) -> None:
            self.called.set()
            raise RuntimeError("broken")

    broken = Broken()
    keep_alive = KeepAlive(period=0.05)
    await keep_alive.__aenter__()
    keep_alive.add(broken, 60)
    await asyncio.wait_for(broken.called.wait(), 10)
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="broken"):
        await keep_alive.__aexit__(None, None, None)
