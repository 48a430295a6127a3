from __future__ import annotations

import io
import time
from dataclasses import replace

import pytest
from rich.console import Console, Group
from rich.text import Text

from device_sim.run.health import HealthSample
from device_sim.run.live import RunState
from device_sim.run.part import PartState
from device_sim.run.recorder import Percentiles, Recorder, Sample, StageSpan
from device_sim.run.runner import Process, Run
from device_sim.scenario.metrics import Duration
from device_sim.scenario.model import build

HEALTH = HealthSample(3.0, 9.0, 0.31, 530, 20_000, 500, 28_232, 112.0)
WINDOWS = {Duration.ADMITTED: Percentiles(40, 4.1, 8.2, 12.1), Duration.END_TO_END: Percentiles(980, 0.9, 2.1, 4.2)}
STATE = RunState(
    elapsed=12.3,
    stages=(StageSpan("ramp", "ramp to 100%, 50/s", 0.0, 10.2), StageSpan("revoke", "revoke 5%, 5/s", 10.2)),
    upcoming=("hold 3 s", "hold 5 s"),
    done=0.4,
    devices=500,
    sample=Sample(12.0, 498, 500, 12_345, 12_340, WINDOWS, {}, HEALTH),
    rate=981.0,
    revoked=2,
    lost_connections=2,
    refusals=(("mqtt 0x87 Not authorized", 4),),
)


def drawn(state: RunState, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(state.picture())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_the_picture_fits_a_terminal_of_80_columns_with_its_figures_whole() -> None:
    lines = drawn(STATE, 80)
    assert max(map(len, lines)) <= 80
    picture = "\n".join(lines)
    for words in ("498/500", "12345", "981", "revoke 5%, 5/s", "hold 5 s", "4 times mqtt 0x87", "lag p99 3 ms", "4.2"):
        assert words in picture


@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_figure_and_no_name_of_one_is_cut_off_on_a_narrow_terminal(width: int) -> None:
    lines = drawn(STATE, width)
    assert max(map(len, lines)) <= width
    picture = "\n".join(lines)
    assert "…" not in picture
    for words in ("connected", "498/500", "messages/s", "981", "end_to_end"):
        assert words in picture


def test_a_line_has_what_a_log_needs() -> None:
    line = STATE.line()
    assert "revoke 5%, 5/s  connected 498/500  981 msg/s  latency ms p50 0.9 p99 4.2" in line
    assert "refused 4 times mqtt 0x87 Not authorized" in line


def test_a_run_that_has_hardly_begun_can_be_shown() -> None:
    state = RunState(0.1, (), ("ramp to 100%, 1/s",), 0.0, 5, None, 0.0, 0, 0, ())
    assert "connecting the backend" in state.line()
    assert "ramp to 100%" in "\n".join(drawn(state, 80))


def part_state(connected: int, revoked: int, lost: int, done: float, refused: dict[str, int]) -> PartState:
    return PartState(connected, 3, 0, lost, revoked, done, refused, {}, HEALTH)


def running(samples: list[Sample], states: list[PartState | None], number: int = 1) -> RunState:
    """Return the state of a run in which *number* stages have begun."""
    run = Run.__new__(Run)
    run.scenario = build({"name": "x", "devices": 5, "stages": [{"ramp": {"rate": 1}}, {"hold": "3s"}]}, "test")
    run.recorder, run.started, run.number = Recorder(), time.monotonic() - 7.0, number
    run.recorder.samples += samples
    run.recorder.stages.append(StageSpan("ramp", "ramp to 100%, 1/s", 0.0))
    run.processes = [Process(f"worker {number}", None, state) for number, state in enumerate(states, 1)]
    return RunState.of(run)


def test_what_all_parts_have_done_is_added_up() -> None:
    """The conductor has no part, and no state."""
    seven = {f"reason {number}": number for number in range(1, 7)}
    parts = [part_state(2, 1, 4, 0.5, {"reason 1": 9}), part_state(1, 2, 3, 1.0, seven), None]
    samples = [Sample(second, 3, 5, 0, received, {}, {}, HEALTH) for second, received in ((1.0, 100), (2.0, 350))]
    state = running(samples, parts)
    assert (state.revoked, state.lost_connections, state.devices, state.done) == (3, 7, 5, 0.75)
    assert state.refusals == (
        ("reason 1", 10), ("reason 6", 6), ("reason 5", 5), ("reason 4", 4), ("reason 3", 3),
    ), "the most frequent ones first, and the rarest left out"  # fmt: skip
    assert state.sample is samples[-1]
    assert state.rate == 250, "of the last second"
    assert state.upcoming == ("hold 3 s",)
    assert 7.0 <= state.elapsed < 60.0


def test_before_the_first_second_is_over_nothing_is_measured() -> None:
    state = running([], [None], number=0)
    assert (state.sample, state.rate, state.done) == (None, 0.0, 0.0)
    assert state.upcoming == ("ramp to 100%, 1/s", "hold 3 s")
    first = Sample(1.0, 3, 5, 0, 100, {}, {}, HEALTH)
    assert running([first], [part_state(0, 0, 0, 0.0, {})]).rate == 0.0, "one second tells no rate yet"


def test_a_stage_that_is_over_has_its_own_time_and_the_current_one_the_time_until_now() -> None:
    over, current = (line.rstrip() for line in drawn(STATE, 80)[:2])
    assert over.split()[0] == "✓"
    assert over.endswith("10.2 s")
    assert current.split()[0] == "▸"
    assert current.endswith("2.1 s")
    assert [line.count("━") for line in (over, current)] == [28, 11], "all of the bar, and four tenths of it"


@pytest.mark.parametrize(
    ("lag", "colour"), [(99.9, "green"), (100.0, "yellow"), (199.9, "yellow"), (200.0, "red")]
)  # fmt: skip
def test_a_generator_that_is_late_is_told_by_its_colour(lag: float, colour: str) -> None:
    """200 ms are its limit: what is beyond is no valid run."""
    assert STATE.sample is not None
    late = replace(STATE, sample=replace(STATE.sample, health=replace(HEALTH, lag_p99_ms=lag)))
    picture = late.picture()
    assert isinstance(picture, Group)
    assert [each.style for each in picture.renderables if isinstance(each, Text)][-1] == colour


def test_a_second_in_which_nothing_arrived_has_no_latency() -> None:
    assert STATE.sample is not None
    quiet = replace(STATE, sample=replace(STATE.sample, windows={}), refusals=())
    assert "981 msg/s  lag 3 ms cpu 31%" in quiet.line()
