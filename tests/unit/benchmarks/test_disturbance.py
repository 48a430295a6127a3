"""What a benchmark says of others that had the processors meanwhile, and which of its runs that spoils."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def disturbance() -> Iterator[Any]:
    """A benchmark's own modules are found only by its scripts."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import disturbance

        yield disturbance
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_a_machine_that_works_uses_processor_time(disturbance: Any) -> None:
    used, taken = disturbance.machine_seconds()
    later, more = disturbance.machine_seconds()
    assert later >= used > 1
    assert more >= taken >= 0


def test_what_others_had_is_said_from_a_limit_on(disturbance: Any) -> None:
    assert disturbance.notes_of([0.2, 0.0], [0.005, 0.0]) == []
    assert disturbance.notes_of([], []) == []
    programs, machines = disturbance.notes_of([0.1, 0.34], [0.0, 0.006, 0.48])
    assert programs.startswith("other programs kept up to 0.3 cores busy")
    assert machines.startswith("in 2 of 3 runs the hypervisor gave other machines up to 48.0% of a core")
