"""What Ctrl-C does to a story: it waits for it, is at work, or has come to its end."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from device_sim.interruption import Interrupted, Interruption, run


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


async def clean_up(turns: int = 100) -> None:
    """Take some turns of the loop: in the first of them a signal is heeded."""
    for _ in range(turns):
        await asyncio.sleep(0.001)


def test_a_story_at_work_is_cancelled_and_cleans_up() -> None:
    cleaned = []

    async def story(_: Interruption) -> None:
        interrupt()
        try:
            await asyncio.sleep(30)
        finally:
            cleaned.append(1)

    with pytest.raises(Interrupted, match="stopped by SIGINT") as ended:
        run(story)
    assert (ended.value.exit_code, cleaned) == (130, [1])


def test_a_story_that_waits_for_it_goes_on() -> None:
    async def story(interruption: Interruption) -> signal.Signals:
        asyncio.get_running_loop().call_soon(interrupt)
        return await interruption.wait()

    assert run(story) is signal.SIGINT


def test_a_signal_when_the_result_is_known_does_not_take_it_away_and_the_next_one_ends_the_clean_up() -> None:
    async def story(interruption: Interruption, signals: int) -> str:
        interruption.too_late()
        for _ in range(signals):
            interrupt()
            await clean_up()
        return "a day's work"

    assert run(lambda interruption: story(interruption, 1)) == "a day's work"
    with pytest.raises(Interrupted):
        run(lambda interruption: story(interruption, 2))


def test_who_has_interrupted_a_story_once_ends_its_clean_up_with_the_second() -> None:
    async def story(interruption: Interruption) -> None:
        asyncio.get_running_loop().call_soon(interrupt)
        await interruption.wait()
        interruption.too_late()
        interrupt()
        await clean_up()

    with pytest.raises(Interrupted):
        run(story)
