"""A process that is to stop ends in time, and says what kept it."""

from __future__ import annotations

import io
import threading

import pytest
import structlog

from provisioning.program.ending import Ending
from tests.support.broker_process import PATIENCE

LONG = 60.0


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
    ending = Ending(structlog.get_logger(), "what was under way is undone", leave)
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
    assert "what was under way is undone" in said.out


def test_it_ends_though_nobody_reads_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off, read = threading.Event(), threading.Event()

    class FullPipe(io.StringIO):
        def write(self, _text: str, /) -> int:
            read.wait()
            return 0

    monkeypatch.setattr("provisioning.program.ending._WORDS_SECONDS", 0.01)
    monkeypatch.setattr("sys.stderr", FullPipe())
    Ending(structlog.get_logger(), "it", lambda _code: cut_off.set()).within(0.001, 1, "words")
    assert cut_off.wait(PATIENCE)
    read.set()
