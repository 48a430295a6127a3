"""What a soak calls growth, on figures: what grows steadily is named; noise, history and another process are not."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
ROUNDS = 60


@pytest.fixture(scope="module", autouse=True)
def benchmarks() -> Iterator[None]:
    """A benchmark's own modules are found only by its scripts."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def judge() -> Any:
    import soak_judge

    return soak_judge


def rounds(figures: Callable[[int], dict[str, float]], count: int = ROUNDS) -> list[dict[str, float]]:
    return [figures(number) for number in range(count)]


def failures(judge: Any, of: list[dict[str, float]]) -> list[str]:
    return [each.name for each in judge.growths(of) if each.failed]


@pytest.mark.parametrize(
    ("name", "first", "each"),
    [
        ("fleet-broker RSS MiB", 80, 0.8),
        ("fleet-broker descriptors", 35, 1),
        ("fleet-broker threads", 6, 0.2),
        ("fleet-broker objects", 90_000, 1_000),
        ("fleet-broker garbage objects", 500, 1_000),
        ("fleet-provisioning CPU ms/operation", 5, 0.3),
        ("rows service.approvals", 30, 1),
        ("service WAL KiB", 4_000, 300),
        ("log fleet-broker FEED_LOST", 0, 0.5),
    ],
)
def test_what_grows_steadily_is_named_and_what_only_varies_is_not(
    judge: Any, name: str, first: float, each: float
) -> None:
    chance = random.Random(name)
    assert failures(judge, rounds(lambda number: {name: first + each * number})) == [name]
    varied = rounds(lambda _: {name: first * chance.uniform(0.9, 1.1)})
    varied[-2][name] = first * 10 + 100_000
    assert failures(judge, varied) == [], "one noisy round decides nothing"


def test_what_fills_caches_at_first_has_not_grown(judge: Any) -> None:
    warming = rounds(lambda number: {"fleet-broker RSS MiB": 60.0 + 30 * min(number, 8) / 8})
    assert failures(judge, warming) == []


def test_what_is_kept_for_ever_may_grow_and_no_other_table(judge: Any) -> None:
    grown = rounds(lambda number: {f"rows {table}": 10.0 * number for table in ("service.devices", "broker.retained")})
    assert failures(judge, grown) == ["rows broker.retained"]
    assert [each.verdict for each in judge.growths(grown)] == ["FAIL", "history"]


@pytest.mark.parametrize(("minutes", "failed"), [(1, []), (5, ["rows service.tokens"])])
def test_what_is_cleaned_hourly_is_judged_in_a_run_of_hours(judge: Any, minutes: int, failed: list[str]) -> None:
    grown = rounds(lambda number: {"at": 60.0 * minutes * number, "rows service.tokens": 20.0 * number})
    assert failures(judge, grown) == failed


def test_each_table_that_is_history_exists(judge: Any) -> None:
    from provisioning.store.every_table import EVERY_TABLE

    assert set(EVERY_TABLE.tables) >= judge.HISTORY | judge.HOURLY


def test_a_figure_of_few_rounds_is_judged_by_those(judge: Any) -> None:
    name = "fleet-broker objects"
    grown = rounds(lambda number: {name: math.nan if number % 4 else 50_000.0 + 1_000 * number})
    assert failures(judge, grown) == [name]


def test_a_process_is_compared_with_itself_only(judge: Any) -> None:
    """A kill makes another of it, and what that uses at first is neither growth nor a remedy of one."""
    name = "fleet-broker RSS MiB"

    def figures(number: int) -> dict[str, float]:
        killed = number >= 15
        return {"fleet-broker life": 1.0 + killed, name: 80.0 + 2 * (number - 15) if killed else 400.0}

    both = [{**each, "fleet-provisioning life": 1.0 + (each["fleet-broker life"] > 1)} for each in rounds(figures)]
    assert judge.rounds_of_longest_lives(both[:40], ("fleet-broker", "fleet-provisioning")) == 25
    before = {each.name: each.first for each in judge.growths(rounds(figures)[:18])}
    assert before[name] == 400.0
    assert failures(judge, judge.in_one_life(rounds(figures), ["fleet-broker"])) == [name]


def test_the_verdict_names_what_is_wrong(judge: Any) -> None:
    good, short = rounds(lambda _: {"rows broker.sessions": 9.0}), rounds(lambda _: {"rows broker.sessions": 9.0}, 3)
    for of, holds in ((good, True), (short, False)):
        (first,) = judge.checks(judge.growths(of), len(of), {})
        assert first.holds is holds
    wrong = {"no revoked one is admitted": [f"meter-{number}" for number in range(7)], "nothing is lost": []}
    seen = [(each.holds, each.seen) for each in judge.checks([], ROUNDS, wrong)[1:]]
    assert seen == [(False, "meter-0; meter-1; meter-2; meter-3; meter-4; and 2 more"), (True, "none")]
    assert judge.never_done({"renew": 7, "claim": 0}, ("renew", "claim", "CA retired")) == [
        "never: claim",
        "never: CA retired",
    ]
    grown = judge.growths(rounds(lambda number: {"rows broker.sessions": 9.0 * number}))
    (first,) = judge.checks(grown, ROUNDS, {})
    assert not first.holds
    assert first.seen == "rows broker.sessions: 153.0 → 459.0"


def test_who_stops_a_soak_has_the_figures_of_all_rounds_until_then(tmp_path: Path) -> None:
    from soak_record import written_at_the_end

    place, taken = tmp_path / "rounds.json", list[dict[str, float]]()

    def soak() -> None:
        with written_at_the_end(taken, place):
            taken.extend([{"RSS MiB": 79.0, "objects": math.nan}, {"RSS MiB": 86.0}])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        soak()
    assert json.loads(place.read_text()) == {"rounds": [{"RSS MiB": 79.0, "objects": None}, {"RSS MiB": 86.0}]}


def test_time_without_a_processor_does_not_count_but_not_for_ever(judge: Any) -> None:
    assert not judge.had_its_time(25, 25, 0)
    assert judge.had_its_time(25, 26, 0.5)
    assert not judge.had_its_time(25, 40, 20)
    assert judge.had_its_time(25, 251, 250)
