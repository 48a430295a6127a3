"""A call in a thread of its own: its result, its error, and that nobody waits for one that never returns."""

from __future__ import annotations

import asyncio
import threading

import pytest

from provisioning.program.own_thread import in_own_thread


async def test_what_a_call_returns_or_raises_is_told() -> None:
    thread = await in_own_thread(threading.current_thread, "file")
    assert (thread.name, thread.daemon) == ("file", True)
    with pytest.raises(ZeroDivisionError):
        await in_own_thread(lambda: 1 // 0, "file")


def test_a_call_that_never_returns_keeps_nobody_waiting() -> None:
    """Neither another call, nor the end of the loop; what it says afterwards is told nobody."""
    release, begun, ended = threading.Event(), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        release.wait(60)
        ended.set()

    async def wait() -> None:
        hanging = asyncio.create_task(in_own_thread(hang, "file"))
        await in_own_thread(begun.wait, "file")
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)

    asyncio.run(wait())
    assert not ended.is_set()
    release.set()
    assert ended.wait(60)
