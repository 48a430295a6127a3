"""The end of a program that a test has started, and what it has said: also if the end does not come.

What happens once in thousands of runs has to explain itself: a time limit alone says nothing of what was waited for.
"""

from __future__ import annotations

import asyncio

import pytest

_SECONDS = 200.0
"""Below the time limit of a test, which says nothing of the program."""


async def last_words(process: asyncio.subprocess.Process, seconds: float = _SECONDS) -> tuple[bytes, bytes]:
    """Wait for the end of *process*; return what it has written to the pipes that it has, and nobody has read yet.

    If it has not ended after *seconds* it is killed, and the test fails with that.
    """
    reading = asyncio.create_task(process.communicate())
    try:
        await asyncio.wait([reading], timeout=seconds)
        if reading.done():
            return reading.result()
        process.kill()
        out, err = await reading
    finally:
        reading.cancel()
    said = "\n".join(each.decode(errors="replace") for each in (out, err) if each)
    pytest.fail(f"it had not ended after {seconds:g} s, and had said:\n{said}")
