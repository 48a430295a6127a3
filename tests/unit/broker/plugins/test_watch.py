"""Who keeps the event loop is found out, step by step, and nothing else about a call changes."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.metrics import Metrics
from broker.plugins import watch
from broker.plugins.logs import Outcomes
from broker.plugins.watch import BLOCKS, Watch


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Scene:
    def __init__(self) -> None:
        self.clock, self.metrics = Clock(), Metrics()
        self.watch = Watch(self.metrics, Outcomes(self.metrics, self.clock), self.clock)

    async def run(self, call: Any) -> Any:
        return await self.watch.watched("Mine", "on_something", call)

    async def works(self, seconds: float) -> str:
        self.clock.now += seconds
        return "done"


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_step_that_is_too_long_is_counted_and_told_of(scene: Scene) -> None:
    with capture_logs() as logs:
        assert await scene.run(scene.works(0.3)) == "done"
        assert await scene.run(scene.works(0.01)) == "done"
    assert scene.metrics.plugin_blocked == {"Mine": pytest.approx(0.3)}
    assert scene.metrics.plugin_outcomes == {BLOCKS: 1}
    (line,) = logs
    assert (line["plugin"], line["hook"], line["milliseconds"]) == ("Mine", "on_something", 300)


async def test_waiting_is_not_blocking_and_each_step_is_measured_for_itself(scene: Scene) -> None:
    async def call() -> int:
        for _ in range(10):
            scene.clock.now += 0.03
            await asyncio.sleep(0)
        scene.clock.now += 0.2
        return 7

    async def elsewhere() -> None:
        scene.clock.now += 60

    beside = asyncio.ensure_future(elsewhere())
    assert await scene.run(call()) == 7
    await beside
    assert scene.metrics.plugin_blocked == {"Mine": pytest.approx(0.2)}


async def test_what_a_call_raises_is_raised_and_its_step_is_measured(scene: Scene) -> None:
    async def call() -> None:
        await asyncio.sleep(0)
        scene.clock.now += 1
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await scene.run(call())
    assert scene.metrics.plugin_blocked == {"Mine": pytest.approx(1)}


async def test_a_time_out_reaches_the_call_which_may_clean_up(scene: Scene) -> None:
    told: list[str] = []

    async def call() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            told.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0)
            told.append("cleaned up")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await scene.run(call())
    assert told == ["cancelled", "cleaned up"]


@pytest.mark.parametrize("cancellations", [1, 3])
async def test_a_call_that_tries_again_whatever_it_meets_ends_too(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, cancellations: int
) -> None:
    """What it meets may be an error of its own, as of a server that it cannot reach; it has no more time for that."""
    monkeypatch.setattr(watch, "_CLEANING", 0.05)
    tried = 0

    async def call() -> None:
        nonlocal tried
        while True:
            refused = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.001, refused.set_exception, ConnectionRefusedError())
            tried += 1
            with contextlib.suppress(asyncio.CancelledError, ConnectionRefusedError):
                await refused

    asked = asyncio.create_task(scene.run(call()))
    for _ in range(cancellations):  # By its time-out, and by the broker that stops.
        await asyncio.sleep(0)
        asked.cancel()
    done, _ = await asyncio.wait([asked], timeout=30)
    if not done:  # It does not end by itself.
        for _ in range(3):
            asked.cancel()
            await asyncio.wait([asked], timeout=1)
    assert done
    assert asked.cancelled()
    assert asked.cancelling() == cancellations, "the watch's own is taken back"
    assert tried > 1


async def test_what_a_call_raises_when_it_is_abandoned_is_dropped(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "_CLEANING", 0.01)

    async def call() -> None:
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            await asyncio.Event().wait()
        finally:
            sys.exit("by a library of mine")

    asked = asyncio.create_task(scene.run(call()))
    await asyncio.sleep(0)
    asked.cancel()
    await asyncio.wait({asked}, timeout=30)
    assert asked.cancelled()


@pytest.mark.parametrize("ended", ["by a time-out of its own", "with a task of its own"])
async def test_a_cancellation_of_its_own_is_none_of_the_call(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, ended: str
) -> None:
    """One that gives up the first server in time may ask the second for as long as it would have the first."""
    monkeypatch.setattr(watch, "_CLEANING", 0.01)

    async def call() -> str:
        first = asyncio.create_task(asyncio.Event().wait())
        if ended == "by a time-out of its own":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.001):
                    await first
        else:
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
        await asyncio.sleep(0.1)
        return "the second's answer"

    assert await scene.run(call()) == "the second's answer"


async def test_after_a_time_out_of_its_own_a_call_that_is_cancelled_may_still_clean_up(scene: Scene) -> None:
    told: list[str] = []
    handled = asyncio.Event()

    async def call() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        handled.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            told.append("cleaned up")

    asked = asyncio.create_task(scene.run(call()))
    await handled.wait()
    asked.cancel()
    await asyncio.wait([asked])
    assert (asked.cancelled(), told) == (True, ["cleaned up"])


async def test_a_task_that_is_dropped_closes_the_call(scene: Scene) -> None:
    told: list[str] = []

    async def call() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            told.append("closed")

    outer = scene.run(call())
    outer.send(None)
    outer.close()
    assert told == ["closed"]


async def test_while_it_lasts_it_is_said_once_a_step_who_holds_the_loop(scene: Scene) -> None:
    async def call() -> None:
        for _ in range(5):
            scene.clock.now += 0.5
            scene.watch.look()
        await asyncio.sleep(0)
        scene.clock.now += 0.5
        scene.watch.look()

    scene.watch.look()
    with capture_logs() as logs:
        await scene.run(call())
        scene.clock.now += 60.0
        scene.watch.look()
    lasting = [line for line in logs if line["log_level"] == "error"]
    assert [(line["plugin"], line["code"], line["seconds"]) for line in lasting] == [("Mine", BLOCKS, 1.0)]


async def test_the_thread_says_it_although_the_loop_stands_still() -> None:
    metrics = Metrics()
    watch = Watch(metrics, Outcomes(metrics, time.monotonic))

    async def call(logs: list[Any]) -> bool:
        until = time.monotonic() + 30
        while not logs and time.monotonic() < until:
            time.sleep(0.01)  # noqa: ASYNC251 - the offence
        return bool(logs)

    watch.start()
    try:
        with capture_logs() as logs:
            assert await watch.watched("Mine", "on_something", call(logs))
    finally:
        watch.close()
    assert logs[0]["event"] == "plugin is blocking the event loop: the broker is stalled"
    assert metrics.plugin_blocked["Mine"] >= 1.0
