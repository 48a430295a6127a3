"""Which tests each worker begins with, as pytest-xdist deals them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from xdist.scheduler import WorkStealingScheduling

from tests.support.compiled_again import TESTS
from tests.support.long_tests import LONGEST, dealt


class Worker:
    """What the scheduler needs of a worker: it is sent numbers of tests."""

    shutting_down = False
    gateway = SimpleNamespace(id="gw")

    def __init__(self) -> None:
        self.sent: list[int] = []

    def send_runtest_some(self, tests: list[int]) -> None:
        self.sent += tests

    def shutdown(self) -> None: ...


def parts(ordered: list[str], number: int) -> list[list[str]]:
    """What xdist itself sends each of so many workers at the beginning."""
    config: Any = SimpleNamespace(getvalue={"tx": [f"{number}*popen"]}.get, hook=None)
    workers: Any = [Worker() for _ in range(number)]
    scheduler = WorkStealingScheduling(config)
    for worker in workers:
        scheduler.add_node(worker)
        scheduler.add_node_collection(worker, ordered)
    scheduler.schedule()
    return [[ordered[test] for test in worker.sent] for worker in workers]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("long", "others"), [(0, 9), (1, 40), (5, 0), (6, 23), (13, 3), (17, 1000)])
def test_each_worker_begins_with_its_share_of_the_long_ones(number: int, long: int, others: int) -> None:
    collected = [f"other {i}" for i in range(others // 2)]
    collected += [f"long {i}" for i in range(long)]
    collected += [f"other {i}" for i in range(others // 2, others)]
    ordered = dealt(collected, number, is_long=lambda test: test.startswith("long"))
    shares = []
    for part in parts(ordered, number):
        share = [test for test in part if test.startswith("long")]
        assert part[: len(share)] == share
        shares.append(len(share))
    assert max(shares) - min(shares) <= 1
    assert sorted(ordered) == sorted(collected)
    assert [test for test in ordered if test.startswith("other")] == [f"other {i}" for i in range(others)]


def test_neighbours_go_to_different_workers() -> None:
    """The tests of a file that takes longest are no single worker's."""
    ordered = dealt([f"long {i}" for i in range(8)], 4, is_long=lambda _: True)
    assert [{test[-1] for test in part} for part in parts(ordered, 4)] == [
        {"3", "7"},
        {"2", "6"},
        {"1", "5"},
        {"0", "4"},
    ]


def test_the_long_ones_exist() -> None:
    assert {file.name for file in TESTS.rglob("test_*.py")} >= LONGEST
