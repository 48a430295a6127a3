"""Walks for as long as you like, told step by step.

PYTHONPATH=. python -m tests.support.walk.explore --seed 1 --walks 5 --steps 300
"""

from __future__ import annotations

import argparse
import time
import traceback
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.few_rounds import encrypt_with_few
from tests.support.walk.every_operation import take
from tests.support.walk.walk import WalkFailed, steps_of


def _tell(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--walks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    asked = parser.parse_args()
    encrypt_with_few()
    for seed in range(asked.seed, asked.seed + asked.walks):
        begun = time.monotonic()
        _tell(f"seed {seed}")
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                done = take(Path(folder), steps_of(seed, asked.steps), _tell)
            except WalkFailed as failure:
                traceback.print_exception(failure.__cause__)
                _tell(f"seed {seed} FAILED after {len(failure.steps)} steps")
            else:
                _tell(f"seed {seed}: {done} of {asked.steps} steps in {time.monotonic() - begun:.1f} s")


if __name__ == "__main__":
    main()
