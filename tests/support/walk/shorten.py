"""Shortens a walk that fails: steps are left out, half of them, a quarter, … one, while it fails in the same words.

PYTHONPATH=. python -m tests.support.walk.shorten --seed 17 --steps 200
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.few_rounds import encrypt_with_few
from tests.support.walk.every_operation import take
from tests.support.walk.explore import ground_of
from tests.support.walk.reality import Ground
from tests.support.walk.walk import Step, WalkFailed, steps_of

_VARYING = re.compile(r"[0-9a-f]{20,}|\d+")


def shortened(steps: Sequence[Step], failure_of: Callable[[Sequence[Step]], str]) -> list[Step]:
    """Return few of *steps* that fail as all of them do."""
    wanted, kept = failure_of(steps), list(steps)
    assert wanted, "it does not fail again"
    size = len(kept) // 2
    while size:
        start = 0
        while start < len(kept):
            fewer = kept[:start] + kept[start + size :]
            if failure_of(fewer) == wanted:
                kept = fewer
            else:
                start += size
        size //= 2
    return kept


def _failure_of(steps: Sequence[Step], ground: Ground) -> str:
    with TemporaryDirectory() as folder:
        try:
            take(Path(folder), steps, ground=ground)
        except WalkFailed as failure:
            return _VARYING.sub("#", str(failure.__cause__))
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True, help="how many it took until it failed")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--clock", action="store_true")
    asked = parser.parse_args()
    encrypt_with_few()
    with ground_of(asked.workers, has_clock=asked.clock) as ground:
        fewer = shortened(steps_of(asked.seed, asked.steps), lambda steps: _failure_of(steps, ground))
    print(fewer)  # noqa: T201 - a program


if __name__ == "__main__":
    main()
