"""The collector is off in the block, and after it as it was before."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from provisioning.program.collector import paused


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = gc.isenabled()
    yield
    (gc.enable if before else gc.disable)()


def test_it_runs_again_whatever_ends_the_block() -> None:
    gc.enable()
    with paused():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), paused():
        raise KeyError
    assert gc.isenabled()


def test_it_stays_off_where_it_was_off_and_two_that_overlap_leave_it_running() -> None:
    gc.disable()
    with paused():
        pass
    assert not gc.isenabled()
    gc.enable()
    first, second = paused(), paused()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert gc.isenabled()


def test_a_function_can_be_run_so_again_and_again() -> None:
    @paused()
    def runs() -> bool:
        return gc.isenabled()

    gc.enable()
    assert (runs(), runs(), gc.isenabled()) == (False, False, True)
