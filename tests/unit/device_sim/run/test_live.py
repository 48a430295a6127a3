from __future__ import annotations

import io

import pytest
from rich.console import Console

from device_sim.run.health import HealthSample
from device_sim.run.live import RunState
from device_sim.run.recorder import Percentiles, Sample, StageSpan
from device_sim.scenario.metrics import Duration

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
