"""Walks for as long as you like, told step by step.

PYTHONPATH=. python -m tests.support.walk.explore --seed 1 --walks 5 --steps 300 [--workers 2]
"""

from __future__ import annotations

import argparse
import contextlib
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.few_rounds import encrypt_with_few
from tests.support.postgresql import PostgresqlServer
from tests.support.walk.every_operation import take
from tests.support.walk.reality import Ground
from tests.support.walk.walk import WalkFailed, steps_of


def _tell(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a program


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--walks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--workers", type=int, default=0, help="so many processes of the service, on PostgreSQL")
    parser.add_argument("--clock", action="store_true", help="the broker's clock can be set")
    asked = parser.parse_args()
    encrypt_with_few()
    with ground_of(asked.workers, has_clock=asked.clock) as ground:
        _explore(asked, ground)


@contextlib.contextmanager
def ground_of(workers: int, *, has_clock: bool = False) -> Iterator[Ground]:
    """Have so many processes on a PostgreSQL server; without any, one on SQLite."""
    if not workers:
        yield Ground(has_clock=has_clock)
        return
    with PostgresqlServer() as server:
        yield Ground(server, workers, has_clock)


def _explore(asked: argparse.Namespace, ground: Ground) -> None:
    for seed in range(asked.seed, asked.seed + asked.walks):
        begun = time.monotonic()
        _tell(f"seed {seed}")
        with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                left = take(Path(folder), steps_of(seed, asked.steps), _tell, ground=ground)
            except WalkFailed as failure:
                traceback.print_exception(failure.__cause__)
                _tell(f"seed {seed} FAILED after {len(failure.steps)} steps, in {failure.last}")
            else:
                done, seconds = asked.steps - len(left), time.monotonic() - begun
                _tell(f"seed {seed}: {done} of {asked.steps} steps in {seconds:.1f} s")


if __name__ == "__main__":
    main()
