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
    async with KeepAlive(period=0.05) as keep_alive, asyncio.timeout(60):
        for client in clients:
            keep_alive.add(client, 60)
        await asyncio.gather(*(client.enough.wait() for client in clients))
        # Spread evenly: nobody is swept twice before everybody was once.
        assert max(client.swept for client in clients) - min(client.swept for client in clients) <= 1


async def test_a_client_that_is_discarded_is_left_alone() -> None:
    gone, stays = Client(), Client()
    async with KeepAlive(period=0.05) as keep_alive, asyncio.timeout(60):
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


class _Looked:
    def loop_misc(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("period", "alive", "longest"), [(5.0, 600, 5.0), (5.0, 8, 2.0), (5.0, 20, 5.0), (1.0, 60, 1.0), (5.0, 0, 5.0)]
)
async def test_every_client_is_looked_at_four_times_within_the_shortest_keep_alive(
    period: float, alive: float, longest: float
) -> None:
    """And no less often than the period says: a broker waits for one and a half times the keep alive."""
    keeper = KeepAlive(period)
    keeper.add(_Looked(), 600)
    keeper.add(_Looked(), alive)
    keeper.add(_Looked(), 600)
    assert keeper._tick * len(keeper._buckets) == pytest.approx(longest)


async def test_what_ends_by_itself_is_told_at_the_end_and_what_does_not_is_ended() -> None:
    class Broken(_Looked):
        def loop_misc(self) -> None:
            raise RuntimeError("its client is broken")

    keeper = KeepAlive(0.01)
    keeper.add(Broken(), 60)
    await keeper.__aenter__()
    sweeping = keeper._sweeping
    assert sweeping is not None
    await asyncio.wait([sweeping])
    with pytest.raises(RuntimeError, match="its client is broken"):
        await keeper.__aexit__(None, None, None)
    async with KeepAlive() as keeper:
        sweeping = keeper._sweeping
    assert sweeping is not None
    assert sweeping.cancelled()
