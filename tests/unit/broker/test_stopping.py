"""What a start waits for ends with the wish to stop, and an answer that is on its way is taken."""

from __future__ import annotations

import asyncio
import contextlib
import io
import signal
import threading

import pytest

from broker.stopping import Ending, Stopped, heed_signals, in_time, unless_stopped
from tests.support.broker_process import PATIENCE

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


def test_a_process_ends_in_time_whoever_keeps_it(capsys: pytest.CaptureFixture[str]) -> None:
    left: list[int] = []
    cut_off, over = threading.Event(), threading.Event()

    def leave(code: int) -> None:
        left.append(code)
        cut_off.set()

    def look_up() -> None:
        over.wait()

    looking = threading.Thread(target=look_up, name="looks a name up")
    looking.start()
    ending = Ending(leave)
    ending.within(LONG, 1)
    ending.within(0.001, 3, "what the start has to say\n")
    assert cut_off.wait(PATIENCE)
    over.set()
    looking.join()
    said = capsys.readouterr()
    assert left == [3]
    assert said.err == "what the start has to say\n"
    assert "STOP_GAVE_UP" in said.out
    assert "looks a name up" in said.out


def test_it_ends_though_nobody_reads_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off, read = threading.Event(), threading.Event()

    class FullPipe(io.StringIO):
        def write(self, _text: str, /) -> int:
            read.wait()
            return 0

    monkeypatch.setattr("broker.stopping._WORDS_SECONDS", 0.01)
    monkeypatch.setattr("sys.stderr", FullPipe())
    Ending(lambda _code: cut_off.set()).within(0.001, 1, "words")
    assert cut_off.wait(PATIENCE)
    read.set()
