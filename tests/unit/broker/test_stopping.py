"""What a start waits for ends with the wish to stop, and an answer that is on its way is taken."""

from __future__ import annotations

import asyncio

import pytest

from broker.stopping import Stopped, unless_stopped

LONG = 60.0


class Refused(Exception):
    """What the other side may say."""


class Work:
    """Something that answers when it is told to, and remembers how it ended."""

    def __init__(self) -> None:
        self.answer = asyncio.Event()
        self.ended = ""

    async def do(self, error: Exception | None = None) -> int:
        self.ended = "cancelled"
        await self.answer.wait()
        self.ended = "answered"
        if error is not None:
            raise error
        return 7


async def test_nobody_wants_it_to_stop() -> None:
    stop, work = asyncio.Event(), Work()
    work.answer.set()
    assert await unless_stopped(stop, work.do()) == 7
    with pytest.raises(Refused):
        await unless_stopped(stop, work.do(Refused()))


@pytest.mark.parametrize("before", [True, False])
async def test_what_does_not_answer_is_given_up(before: bool) -> None:
    stop, work = asyncio.Event(), Work()
    if before:
        stop.set()
    waiting = asyncio.create_task(unless_stopped(stop, work.do(), grace=0.01))
    await asyncio.sleep(0)
    stop.set()
    with pytest.raises(Stopped):
        await asyncio.wait_for(waiting, LONG)
    assert work.ended == "cancelled"


@pytest.mark.parametrize(("error", "raised"), [(None, Stopped), (Refused(), Refused)])
async def test_an_answer_on_its_way_is_taken(error: Exception | None, raised: type[Exception]) -> None:
    stop, work = asyncio.Event(), Work()
    waiting = asyncio.create_task(unless_stopped(stop, work.do(error), grace=LONG))
    await asyncio.sleep(0)
    stop.set()
    await asyncio.sleep(0.01)
    assert not waiting.done()
    work.answer.set()
    with pytest.raises(raised):
        await asyncio.wait_for(waiting, LONG)
    assert work.ended == "answered"


async def test_who_waits_may_be_cancelled_too() -> None:
    work = Work()
    waiting = asyncio.create_task(unless_stopped(asyncio.Event(), work.do()))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert work.ended == "cancelled"
