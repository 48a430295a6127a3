"""The order of the tests: those that take longest begin first, on every worker.

pytest-xdist deals a contiguous part of the list to each worker (`worksteal`), so each part has to begin with its share
of them. At the head of the whole list they would all be the first worker's, and wait there for each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, TypeVar

TestT = TypeVar("TestT")

LONGEST: Final = {
    "test_attack.py",
    "test_attack_across_a_link.py",
    "test_attack_on_lenient_brokers.py",
    "test_attack_on_one_fault.py",
    "test_chaos.py",
    "test_clock.py",
    "test_delivery_after_a_kill.py",
    "test_delivery_of_sessions_on_one_fault.py",
    "test_delivery_of_subscriptions_on_one_fault.py",
    "test_delivery_on_one_fault.py",
    "test_demo.py",
    "test_demo_on_one_fault.py",
    "test_durability.py",
    "test_faulty_brokers.py",
    "test_judged_by_testssl.py",
    "test_peers.py",
    "test_planted_faults.py",
    "test_power_failure.py",
    "test_qualify.py",
    "test_qualify_faulty_devices.py",
    "test_real_clients.py",
    "test_run.py",
    "test_run_against_mosquitto.py",
    "test_run_in_trouble.py",
    "test_schemathesis.py",
    "test_smoke.py",
    "test_unfinished_ends.py",
    "test_walks.py",
}
"""Files with tests that take ten seconds and more. One that begins last has a core to itself, and the others wait."""


def dealt(tests: Sequence[TestT], workers: int, *, is_long: Callable[[TestT], bool]) -> list[TestT]:
    """Order tests so that each worker's part begins with its share of the long ones.

    Of a file each gets some: with two workers, every other one. Some files take much longer than others. The sizes are
    xdist's: where the number of workers does not divide that of the tests, the last ones get one more.
    """
    long = [test for test in tests if is_long(test)]
    others = (test for test in tests if not is_long(test))
    ordered: list[TestT] = []
    for worker in range(workers):
        share = long[workers - 1 - worker :: workers]  # The last parts are the larger ones, and so are their shares.
        size = (len(tests) - len(ordered)) // (workers - worker)
        ordered += [*share, *islice(others, size - len(share))]
    return ordered
