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
from tests.support.walk.walk import OPERATIONS, Step, steps_of, walks_of_all

_SEED = 8
"""Of the walks in `make test`, which are always the same: what they find has been done by whoever changed something."""
_LONG = 250
"""Steps of a new walk."""
_is_thorough = settings().max_examples > settings.get_profile("fleetgate").max_examples


@pytest.mark.parametrize("number", range(2))
def test_whatever_is_done_oracle_and_product_agree(tmp_path: Path, number: int) -> None:
    """Both walks have each operation once between them, of which few are not possible when their turn comes."""
    steps = walks_of_all(_SEED, 2)[number]
    assert take(tmp_path, steps, print) > len(steps) * 2 / 3, "hardly anything was possible"


@pytest.mark.hypothesis
@pytest.mark.skipif(not _is_thorough, reason="`make test-thorough` has walks that nobody has taken before")
@pytest.mark.parametrize("number", range(20 if _is_thorough else 1))
def test_another_walk_each_time_agrees_too(tmp_path: Path, number: int) -> None:
    seed = random.randrange(10**6)  # noqa: S311 - a walk, not a secret
    print(f"walk {number}: seed {seed}, {_LONG} steps")  # noqa: T201 - pytest shows it with a failure
    assert take(tmp_path, steps_of(seed, _LONG)) > _LONG / 4, "hardly anything was possible"


def test_a_walk_is_shortened_to_what_matters() -> None:
    def failure_of(steps: Sequence[Step]) -> str:
        names = [step.operation for step in steps]
        return "lost" if "revoke" in names and "connect" in names[names.index("revoke") :] else ""

    walk = [Step(name, seed) for seed, name in enumerate(sorted(OPERATIONS))] * 3
    assert [step.operation for step in shortened(walk, failure_of)] == ["revoke", "connect"]
