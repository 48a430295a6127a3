"""Random walks through the whole product: service, broker, devices, operators, beside an oracle, kill -9 included.

A failure tells what was done, step by step, and the seed: `tests.support.walk.explore` takes such a walk again, and
`tests.support.walk.shorten` leaves out of it what does not matter.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support.walk.every_operation import take
from tests.support.walk.shorten import shortened
from tests.support.walk.walk import OPERATIONS, Step, steps_of

_SHORT, _LONG = 25, 250
"""Steps. Most of a short walk are two processes that start; it has a chance to find what is always wrong."""


def _agree(directory: Path, seed: int, steps: int) -> None:
    print(f"seed {seed}, {steps} steps")  # noqa: T201 - pytest shows it with a failure
    assert take(directory, steps_of(seed, steps)) > steps // 4, "hardly anything was possible"


def test_whatever_is_done_oracle_and_product_agree(tmp_path: Path) -> None:
    _agree(tmp_path, seed=1, steps=_SHORT)


@pytest.mark.hypothesis
def test_another_walk_each_time_agrees_too(tmp_path: Path) -> None:
    """In `make test-thorough`, whose profile has twenty times as many examples, twenty long ones."""
    walks = settings().max_examples // 100
    for number in range(walks):
        seed = random.randrange(10**6)  # noqa: S311 - a walk, not a secret
        _agree(tmp_path / str(number), seed, _SHORT if walks == 1 else _LONG)


def test_a_walk_is_shortened_to_what_matters() -> None:
    def failure_of(steps: Sequence[Step]) -> str:
        names = [step.operation for step in steps]
        return "lost" if "revoke" in names and "connect" in names[names.index("revoke") :] else ""

    walk = [Step(name, seed) for seed, name in enumerate(sorted(OPERATIONS))] * 3
    assert [step.operation for step in shortened(walk, failure_of)] == ["revoke", "connect"]
