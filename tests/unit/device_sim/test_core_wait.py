"""How long a process waited for a core is what the kernel says, and a share of the time that has passed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from device_sim import core_wait
from device_sim.core_wait import CoreWatch, seconds_waited


def test_a_wait_is_the_kernel_s_in_seconds() -> None:
    def told() -> float:
        return int(Path("/proc/self/schedstat").read_text().split()[1]) / 1_000_000_000

    before = told()
    assert before <= seconds_waited() <= told()
    assert before <= seconds_waited(os.getpid()) <= told()


def test_who_has_gone_waits_for_nothing() -> None:
    assert seconds_waited(2**22 + 1) == 0.0


def test_a_share_is_of_the_time_since_the_watch_began(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = {None: 100.0, 7: 40.0, 8: 9.0}
    now = 1000.0
    monkeypatch.setattr(core_wait, "seconds_waited", lambda process: waited[process])
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = CoreWatch("this", {"broker": 7, "gone": 8})
    now, waited = 1004.0, {None: 101.0, 7: 42.0, 8: 0.0}
    assert watch.shares() == {"this": 0.25, "broker": 0.5, "gone": 0.0}
    now = 1000.0
    assert CoreWatch("this", {}).shares() == {"this": 0.0}, "no time has passed"


def test_who_loses_its_core_while_it_looks_has_waited_for_no_more_than_all_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0

    def held_off(_process: int | None) -> float:
        nonlocal now
        now += 8.0
        return now

    monkeypatch.setattr(core_wait, "seconds_waited", held_off)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = CoreWatch("this", {})
    now += 8.0
    assert watch.shares() == {"this": 16 / 24}


def test_a_wait_that_had_begun_before_the_watch_is_no_more_than_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = 40.0
    now = 1000.0
    monkeypatch.setattr(core_wait, "seconds_waited", lambda _process: waited)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watch = CoreWatch("this", {"broker": 7})
    now, waited = 1000.25, 41.0
    assert watch.shares() == {"this": 1.0, "broker": 1.0}
