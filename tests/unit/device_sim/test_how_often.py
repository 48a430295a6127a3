"""What happened once is not said to have happened "1 times"."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from device_sim.bench.bench import Figures
from device_sim.bench.plan import Kind, Plan
from device_sim.bench.show import summary
from device_sim.results.summary import summary_of
from provisioning.program.counted import counted
from tests.support.documents import imagined
from tests.unit.device_sim.run.test_live import STATE, drawn

REFUSED = "mqtt 0x87 Not authorized"


def shown(what: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(("count", "said"), [(0, "0 times"), (1, "1 time"), (2, "2 times")])
def test_whoever_tells_of_refusals_counts_them_in_plain_words(count: int, said: str) -> None:
    assert counted(count, "time") == said
    document = imagined()
    document["refusals"] = {REFUSED: count}
    state = replace(STATE, refusals=((REFUSED, count),))
    figures = Figures(refused=Counter({REFUSED: count}), lost=Counter({REFUSED: count}))
    told = shown(summary(Plan(Kind.CONN, 1, 1.0), figures))
    assert f"refused {said}: {REFUSED}" in told
    assert f"lost {said}: {REFUSED}" in told
    for each in (shown(summary_of(document)), state.line(), "\n".join(drawn(state, 200))):
        assert f"{said} {REFUSED}" in each
