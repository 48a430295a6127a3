"""What a start waits for ends with the wish to stop, and an answer that is on its way is taken."""

from __future__ import annotations

import asyncio
import contextlib
import signal

import pytest

from broker.process.stopping import Stopped, heed_signals, in_time, unless_stopped

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


async def test_who_does_not_let_himself_be_cancelled_is_left_behind_and_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    over = asyncio.Event()

    async def stubborn() -> None:
        while not over.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await over.wait()

    await in_time("plugins", stubborn(), 0.01)
    said = capsys.readouterr().out
    assert "STOP_GAVE_UP" in said
    assert "plugins have not ended" in said
    over.set()


async def test_what_ends_in_time_ends_as_it_does_without(capsys: pytest.CaptureFixture[str]) -> None:
    work = Work()
    work.answer.set()
    await in_time("work", work.do(), LONG)
    with pytest.raises(Refused):
        await in_time("work", work.do(Refused()), LONG)
    assert capsys.readouterr().out == ""


def test_a_second_signal_neither_stops_again_nor_fails() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stopped: list[bool] = []
    heed_signals(lambda: stopped.append(True))
    try:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert stopped == [True]
