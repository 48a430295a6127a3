"""A log whose reader has stopped: nobody waits for him, lines are lost whole, and he is told how many."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from provisioning.program import log_stream
from provisioning.program.log_stream import LossyStream

PAGE = 4096


class Reader:
    """Whoever reads what *log* writes."""

    def __init__(self, reads: int, stream: TextIO) -> None:
        self.log = LossyStream(stream)
        self.descriptor = reads
        self._read = b""
        os.set_blocking(reads, False)

    def read(self) -> None:
        """Read all that there is."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.descriptor, 65536):
                self._read += part

    def lines(self) -> list[dict[str, Any]]:
        """Return what has been read."""
        return [json.loads(line) for line in self._read.decode().splitlines()]

    def numbers(self) -> list[int]:
        """Return the numbers of the lines that were read."""
        return [each["number"] for each in self.lines() if "number" in each]

    def told(self) -> list[int]:
        """Return how many lines were said to be lost, each time."""
        return [each["lines"] for each in self.lines() if each["event"] == "log lines lost"]


@pytest.fixture(params=["pipe", "pipe of another user's", "socket"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.setattr(log_stream, "_PATIENCE_SECONDS", 0.05)
    if request.param == "socket":
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PAGE)
        reads, writes = theirs.detach(), ours.detach()
    else:
        reads, writes = os.pipe()
        fcntl.fcntl(writes, fcntl.F_SETPIPE_SZ, PAGE)
    if request.param == "pipe of another user's":

        def forbidden(*_: object) -> int:
            raise PermissionError

        monkeypatch.setattr(log_stream, "_opened", forbidden)
    with os.fdopen(writes, "w", encoding="utf-8") as stream:
        made = Reader(reads, stream)
        yield made
        made.log.close()
    with contextlib.suppress(OSError):
        os.close(reads)


def line(number: int, padding: str = "x" * 200) -> str:
    return json.dumps({"event": "enrolled", "padding": padding, "number": number}) + "\n"


def test_nobody_waits_for_a_reader_that_has_stopped_and_he_is_told_how_much_he_has_missed(reader: Reader) -> None:
    begun = time.monotonic()
    for number in range(1000):
        reader.log.write(line(number))
        reader.log.flush()
    assert time.monotonic() - begun < 25, "not a thousand times the patience"
    reader.read()
    reader.log.write(line(1000))
    reader.read()
    assert 0 < reader.log.lost < 1000
    assert reader.told() == [reader.log.lost]
    assert reader.numbers() == [*range(1000 - reader.log.lost), 1000]


def test_of_a_line_that_has_begun_the_rest_comes_first(reader: Reader) -> None:
    reader.log.write(line(0, "x" * 64 * PAGE))
    reader.log.write(line(1))
    for _ in range(1000):
        reader.read()
        reader.log.write(line(2))
    reader.read()
    assert reader.numbers()[:2] == [0, 2]
    assert sum(reader.told()) == reader.log.lost > 0


def test_no_line_comes_before_the_rest_of_another_whenever_there_is_room_again(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_stream, "_PATIENCE_SECONDS", 0.0)
    target = reader.log._target
    assert target is not None

    def write(data: bytes) -> int:
        try:
            return target.write(data)
        except BlockingIOError:
            reader.read()  # Just too late.
            raise

    reader.log._target = dataclasses.replace(target, write=write)
    for number in range(200):
        reader.log.write(line(number, "x" * 8 * PAGE))
    for number in range(200, 400):  # The rest of the last is longer than there is room at once.
        reader.read()
        reader.log.write(line(number))
    reader.read()
    assert reader.numbers() == sorted(reader.numbers())
    assert len(reader.numbers()) + sum(reader.told()) == 400


def test_a_reader_that_is_slow_is_waited_for(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_stream, "_PATIENCE_SECONDS", 60.0)
    has_room = log_stream._has_room

    def reads_meanwhile(descriptor: int, seconds: float) -> bool:
        if seconds:
            reader.read()
        return has_room(descriptor, seconds)

    monkeypatch.setattr(log_stream, "_has_room", reads_meanwhile)
    for number in range(200):
        reader.log.write(line(number))
    reader.read()
    assert reader.numbers() == list(range(200))
    assert reader.log.lost == 0


def test_who_has_read_again_is_waited_for_again(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1000):
        reader.log.write(line(number))
    lost = reader.log.lost
    assert lost > 0
    reader.read()
    monkeypatch.setattr(log_stream, "_PATIENCE_SECONDS", 60.0)
    has_room = log_stream._has_room

    def reads_meanwhile(descriptor: int, seconds: float) -> bool:
        if seconds:
            reader.read()
        return has_room(descriptor, seconds)

    monkeypatch.setattr(log_stream, "_has_room", reads_meanwhile)
    for number in range(1000, 1200):
        reader.log.write(line(number))
    reader.read()
    assert reader.numbers()[-200:] == list(range(1000, 1200))
    assert reader.log.lost == lost


def test_lines_of_several_threads_stay_apart(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_stream, "_PATIENCE_SECONDS", 60.0)
    has_room = log_stream._has_room
    other = threading.Thread(target=lambda: reader.log.write(line(1)))

    def reads_while_another_writes(descriptor: int, seconds: float) -> bool:
        if seconds:
            reader.read()
            if other.ident is None:
                other.start()
                other.join(0.1)  # He has to wait.
        return has_room(descriptor, seconds)

    monkeypatch.setattr(log_stream, "_has_room", reads_while_another_writes)
    reader.log.write(line(0, "x" * 64 * PAGE))
    other.join(60)
    reader.read()
    assert reader.numbers() == [0, 1]


def test_where_the_reader_is_gone_lines_are_lost(reader: Reader) -> None:
    os.close(reader.descriptor)
    reader.log.write(line(0))
    assert reader.log.lost == 1


def test_a_file_is_written_as_ever_and_what_a_full_disk_does_not_take_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as stream:
        log = LossyStream(stream)
        log.write(line(0))
        log.flush()
        assert path.read_text() == line(0)
        log.close()
        log.write(line(1))
        log.flush()
        assert path.read_text() == line(0) + line(1), "it is not ours to close"
    for lost in (1, 2, 3, 4):
        log.write(line(2)) if lost % 2 else log.flush()
        assert log.lost == lost, "it is closed"
    kept = io.StringIO()
    LossyStream(kept).write(line(0))
    assert kept.getvalue() == line(0), "whatever it is that has no descriptor"
    with contextlib.suppress(OSError), Path("/dev/full").open("w", encoding="utf-8") as stream:
        log = LossyStream(stream)
        log.write(line(0))
        log.flush()
        assert log.lost == 1


@pytest.fixture
def named(tmp_path: Path) -> Iterator[Named]:
    path = tmp_path / "log"
    os.mkfifo(path)
    first = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with path.open("w", encoding="utf-8") as stream:
        made = Named(path, first, Reader(first, stream))
        yield made
        made.reader.log.close()
    made.leave()


@dataclasses.dataclass
class Named:
    """A pipe with a name, which one reader after the other may open."""

    path: Path
    _descriptor: int
    reader: Reader

    def leave(self) -> None:
        """Let whoever reads it go."""
        os.close(self._descriptor)

    def come(self) -> None:
        """Let another take his place; what he reads begins anew."""
        self._descriptor = self.reader.descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)


def test_who_comes_after_a_reader_that_was_gone_is_told_how_much_nobody_has_read(named: Named) -> None:
    named.reader.log.write(line(0))
    named.reader.read()
    named.leave()
    for number in range(1, 4):
        named.reader.log.write(line(number))
    named.come()
    named.reader.log.write(line(4))
    named.reader.read()
    assert (named.reader.numbers(), named.reader.told(), named.reader.log.lost) == ([0, 4], [3], 3)


def test_a_line_in_whose_middle_the_reader_has_gone_is_finished_for_the_next(
    named: Named, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_room = log_stream._has_room

    def goes_meanwhile(descriptor: int, seconds: float) -> bool:
        named.reader.read()
        named.leave()
        monkeypatch.setattr(log_stream, "_has_room", has_room)
        return has_room(descriptor, seconds)

    monkeypatch.setattr(log_stream, "_has_room", goes_meanwhile)
    monkeypatch.setattr(log_stream, "_PATIENCE_SECONDS", 0.05)
    named.reader.log.write(line(0, "x" * 64 * PAGE))
    named.reader.log.write(line(1))
    named.come()
    for _ in range(100):
        named.reader.log.write(line(2))
        named.reader.read()
    assert named.reader.numbers()[:2] == [0, 2]
    assert sum(named.reader.told()) == named.reader.log.lost > 0
