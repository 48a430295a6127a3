"""Who waits for work that outlives its waiter, and what is said of an error that nobody waits for any more."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from provisioning.program.shielded import Lasting, shielded


async def test_what_fails_after_its_waiter_has_gone_is_told_the_others_and_nobody_else() -> None:
    """`asyncio.shield` tells the event loop's exception handler, from Python 3.14 on."""
    loop, complaints = asyncio.get_running_loop(), list[dict[str, Any]]()
    loop.set_exception_handler(lambda _loop, context: complaints.append(context))
    for others in (0, 1):
        work: asyncio.Future[None] = loop.create_future()
        gone, *patient = [asyncio.create_task(shielded(work)) for _ in range(1 + others)]
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert not work.done()
        work.set_exception(ZeroDivisionError)
        for each in patient:
            with pytest.raises(ZeroDivisionError):
                await each
        await asyncio.sleep(0)
        del work, gone, patient
        gc.collect()
    assert complaints == []


@pytest.mark.parametrize("fails", [False, True])
async def test_who_waits_for_what_lasts_goes_on_when_it_has_ended_however_often_he_is_cancelled(*, fails: bool) -> None:
    work: Lasting[int] = Lasting(loop=asyncio.get_running_loop())

    async def wait() -> int:
        return await work

    gone, patient = asyncio.create_task(wait()), asyncio.create_task(wait())
    for _ in range(3):
        await asyncio.sleep(0)
        gone.cancel()
    assert [gone.done(), work.done()] == [False, False]
    if fails:
        work.set_exception(ZeroDivisionError())
    else:
        work.set_result(7)
    await asyncio.wait([gone, patient])
    assert gone.cancelled()
    assert isinstance(patient.exception(), ZeroDivisionError) if fails else patient.result() == 7


async def test_work_that_is_done_is_not_waited_for_and_work_that_is_cancelled_ends_the_wait() -> None:
    work: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(shielded(work))
    await asyncio.sleep(0)
    work.set_result(7)
    assert await waiting == 7
    with pytest.raises(StopIteration) as returned:
        shielded(work).send(None)
    assert returned.value.value == 7
    cancelled: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(shielded(cancelled))
    await asyncio.sleep(0)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
