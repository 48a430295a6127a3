from __future__ import annotations

import asyncio

import pytest

from device_sim.repeating import repeating


async def test_it_goes_on_until_the_end_and_no_further() -> None:
    calls: list[int] = []
    thrice = asyncio.Event()

    def work() -> None:
        calls.append(len(calls))
        if len(calls) == 3:
            thrice.set()

    async with repeating(0.0, work):
        assert calls == [], "not before the first pause"
        await thrice.wait()
    done = len(calls)
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(calls) == done >= 3


async def test_what_fails_in_the_background_is_told_at_the_end_and_not_done_again() -> None:
    """A view that can no longer be drawn would otherwise just stand still."""
    calls: list[int] = []
    failed = asyncio.Event()

    def work() -> None:
        calls.append(1)
        failed.set()
        raise ValueError("cannot be drawn")

    with pytest.raises(ValueError, match="cannot be drawn"):
        async with repeating(0.0, work):
            await failed.wait()
    assert calls == [1]
