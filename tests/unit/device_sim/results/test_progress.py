"""What is known of a run while it goes on: on a disk that is full for a while, too."""

from __future__ import annotations

import asyncio
import json
import resource
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from device_sim.results import progress
from device_sim.results.document import PROGRESS
from device_sim.results.page import page_of
from device_sim.results.progress import Progress, document_so_far, kept
from device_sim.results.summary import summary_of
from device_sim.run.health import HealthSample
from device_sim.run.manner import ONE_PROCESS, Manner
from device_sim.run.recorder import Marker, Recorder, StageSpan
from device_sim.run.runner import Run
from device_sim.scenario.metrics import Duration
from device_sim.scenario.model import Scenario, build
from tests.support.documents import SCENARIO

PATIENCE = 60
HEALTH = HealthSample(1.0, 3.0, 0.2, 60, 20_000, 40, 28_232, 80.0)


@dataclass
class Played:
    """As much of a run as is written down."""

    scenario: Scenario = field(default_factory=lambda: build(SCENARIO, "imagined"))
    manner: Manner = ONE_PROCESS
    wall: datetime = field(default_factory=lambda: datetime.now(UTC))
    target: Any = field(default_factory=lambda: SimpleNamespace(broker_name="fleetgate"))
    recorder: Recorder = field(default_factory=Recorder)
    refused: Counter[str] = field(default_factory=Counter)

    def go_on(self) -> None:
        """Let a second pass, in which one client is refused."""
        second = len(self.recorder.samples) + 1
        self.refused["mqtt 0x87 Not authorized"] += 1
        self.recorder.sample(float(second), 4 * second, 40, 10 * second, 9 * second, self.refused, HEALTH)


@contextmanager
def full_disk(path: Path, room: int) -> Iterator[None]:
    """Let files be no longer than *path* is, and *room*."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def opened() -> set[Path]:
    return {each.readlink() for each in Path("/proc/self/fd").iterdir() if each.is_symlink()}


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0)


def seconds_of(path: Path) -> list[float]:
    return [each["at"] for each in document_so_far(path)["timeline"]]


@pytest.mark.parametrize("room", [0, 1, 100, 1000])
def test_what_a_full_disk_has_not_taken_is_there_once_and_whole_when_it_has_room_again(
    tmp_path: Path, room: int
) -> None:
    run: Any = Played()
    path = tmp_path / "progress.jsonl"
    written = Progress(path, run)
    run.go_on()
    written.add()
    refused = 0
    with full_disk(path, room):
        for _ in range(6):
            run.go_on()
            try:
                written.add()
            except OSError:
                refused += 1
    assert refused > 2
    run.go_on()
    run.recorder.markers.append(Marker(7.5, "storm", "40 connections break"))
    written.add(last=True)
    written.close()
    assert seconds_of(path) == [float(second) for second in range(1, 9)]
    document = document_so_far(path)
    assert document["refusals"] == {"mqtt 0x87 Not authorized": 8}
    assert [each["what"] for each in document["markers"]] == ["40 connections break"]
    assert all(json.loads(line) for line in path.read_text().splitlines())


async def test_who_ends_while_the_disk_is_full_lets_go_of_the_file(tmp_path: Path) -> None:
    run: Any = Played()
    path = tmp_path / PROGRESS
    with ExitStack() as until_it_has_ended:
        async with kept(tmp_path, run):
            run.go_on()
            until_it_has_ended.enter_context(full_disk(path, 0))
    assert path not in opened()
    assert seconds_of(path) == []


async def test_each_second_is_a_line_as_soon_as_it_is_over_and_the_last_is_there_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    run: Any = Played()
    path = tmp_path / PROGRESS
    async with kept(tmp_path, run):
        for _ in range(2):
            run.go_on()
            await until(lambda: len(seconds_of(path)) == len(run.recorder.samples))
        assert document_so_far(path)["durations"] == {}, "once a minute"
        run.recorder.record(Duration.ADMITTED, 0.01, 0.0)
        run.recorder.stages.append(StageSpan("storm", "storm 100%", 1.0))
        await until(lambda: bool(document_so_far(path)["stages"]))
        monkeypatch.setattr(progress, "_DURATIONS_SECONDS", 0.0)
        await until(lambda: "admitted" in document_so_far(path)["durations"])
        monkeypatch.setattr(progress, "_DURATIONS_SECONDS", 60.0)
        monkeypatch.setattr(progress, "_SECONDS", 60.0)
        run.recorder.record(Duration.PUBACK, 0.01, 0.0)
        run.recorder.stages[-1].end = 2.0
    document = document_so_far(path)
    assert set(document["durations"]) == {"admitted", "puback"}
    assert [each["end"] for each in document["stages"]] == [2.0]
    assert (document["seconds"], document["counts"]["published"], document["counts"]["received"]) == (2.0, 20, 18)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum("stages" in line for line in lines) == 2, "said again only when it has changed"


def test_of_the_markers_only_what_is_new_is_written(tmp_path: Path) -> None:
    """Of 10,000 devices that are revoked each is one: to go through all of them each second takes the loop 70 ms."""
    path, run = tmp_path / PROGRESS, Played()
    markers = [Marker(float(number), "revoke", f"meter-{number}") for number in range(100)]
    run.recorder.markers += markers
    with closing(Progress(path, cast("Run", run))) as written:
        written.add()
        before = path.stat().st_size
        run.recorder.markers.append(Marker(100.0, "storm", "all"))
        written.add()
        written.add()
        grown = path.read_bytes()[before:]
        assert (grown.count(b"storm"), grown.count(b"revoke")) == (1, 0)
        assert [each["at"] for each in document_so_far(path)["markers"]] == [float(number) for number in range(101)]
        run.recorder.markers.insert(0, Marker(-1.0, "stayed in", "meter-7"))
        written.add(last=True)
    assert [each["at"] for each in document_so_far(path)["markers"]] == [float(number) for number in range(-1, 101)]


def test_a_disk_that_is_full_from_the_beginning_on_is_told_with_the_file(tmp_path: Path) -> None:
    (full := tmp_path / PROGRESS).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as told:
        Progress(full, cast("Run", Played()))
    assert told.value.filename == str(full)
    assert Path("/dev/full") not in opened()


def test_durations_are_written_once_a_minute_and_a_run_without_a_verdict_is_no_success(tmp_path: Path) -> None:
    path, run = tmp_path / PROGRESS, Played()
    run.recorder.record(Duration.ADMITTED, 0.01, 0.0)
    with closing(Progress(path, cast("Run", run))) as written:
        for minutes in range(3):
            for _ in range(2):
                written.add()
                lines = [json.loads(line) for line in path.read_text().splitlines()]
                assert sum("durations" in line for line in lines) == minutes
            written._durations_at -= 60.0
    document = document_so_far(path)
    assert (document["verdict"], document["exit_code"], document["seconds"]) == ("INTERRUPTED", 1, 0.0)


async def test_nothing_is_kept_where_no_report_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run: Any = Played()
    async with kept(None, run):
        run.go_on()
    assert not (tmp_path / PROGRESS).exists()


def test_of_a_run_that_goes_on_no_heading_stands_over_nothing(tmp_path: Path) -> None:
    """And nobody is told of a generator that takes no memory."""
    told = tmp_path / PROGRESS
    run = Played()
    run.go_on()
    with closing(Progress(told, cast("Run", run))) as progress_file:
        progress_file.add()
    console = Console(file=StringIO(), width=120)
    console.print(summary_of(document_so_far(told)))
    shown = cast("StringIO", console.file).getvalue()
    assert "published 10, received 9" in shown
    for heading in ("Thresholds", "Milliseconds", "generator:"):
        assert heading not in shown


@pytest.mark.parametrize("seconds", [0, 1])
def test_a_run_has_a_page_from_its_beginning_on(tmp_path: Path, seconds: int) -> None:
    told = tmp_path / PROGRESS
    run = Played()
    for _ in range(seconds):
        run.go_on()
    with closing(Progress(told, cast("Run", run))) as progress_file:
        progress_file.add()
    page = page_of(document_so_far(told))
    assert f"cut off after {seconds} s, or goes on" in page
    assert ("At the end 80 MB, 60 of 20000 descriptors." in page) == (seconds > 0)
