"""Out of memory: wherever the loop, or Python, is told of it, the process ends with its last words.

Each case is a process of its own whose limit is real, and so is the allocation that fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support.provisioning import REPOSITORY

PROGRAM = """
import asyncio, concurrent.futures, resource, sys, threading
import uvloop
from provisioning.program.out_of_memory import told, watched

def more():
    return bytearray(1 << 34)

async def allocate():
    more()

class Unstarted(concurrent.futures.Future):
    def set_running_or_notify_cancel(self):
        more()

class Unended(concurrent.futures.Future):
    def set_result(self, result):
        more()

class Dropped:
    def __del__(self):
        more()

async def in_group():
    async with asyncio.TaskGroup() as tasks:
        told(tasks.create_task(allocate()))
        tasks.create_task(stays())

async def stays():  # As a listener that ends in order, and has no memory for that.
    try:
        await asyncio.sleep(60)
    finally:
        await asyncio.sleep(60)

async def in_pool(of):
    concurrent.futures._base.Future = of
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        await asyncio.get_running_loop().run_in_executor(pool, int)

async def main(case):
    loop = asyncio.get_running_loop()
    match case:
        case "callback":
            loop.call_soon(more)
        case "task":
            kept = told(loop.create_task(allocate()))
        case "group":
            await in_group()
        case "thread":
            threading.Thread(target=more, daemon=True).start()
        case "thread unstarted":
            threading.stack_size(1 << 34)
            threading.Thread(target=int).start()
        case "pool before":
            await in_pool(Unstarted)
        case "pool after":
            await in_pool(Unended)
        case "pool telling":
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                pool.submit(int).add_done_callback(lambda _: more())
        case "nowhere":
            Dropped()
        case "itself":
            more()
        case "other":
            loop.call_soon(lambda: 1 / 0)
            await asyncio.sleep(0.01)
            return
    await asyncio.sleep(60)

resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
with asyncio.Runner(loop_factory=uvloop.new_event_loop if sys.argv[2] == "uvloop" else None) as runner:
    with watched(runner.get_loop(), "fleet-program"):
        runner.run(main(sys.argv[1]))
"""
LAST_WORDS = "fleet-program: out of memory, and ended at once, to be started again; nothing that was promised is lost."


def ended(case: str, loop: str, **streams: Any) -> subprocess.CompletedProcess[str]:
    streams = streams or {"stderr": subprocess.PIPE}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, case, loop],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        text=True,
        check=False,
        timeout=50,  # Less than anybody in there waits.
        **streams,
    )


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
@pytest.mark.parametrize(
    "case",
    [
        *("callback", "task", "group", "thread", "thread unstarted"),
        *("pool before", "pool after", "pool telling", "nowhere", "itself"),
    ],
)
def test_whoever_has_no_memory_the_process_ends_at_once(case: str, loop: str) -> None:
    done = ended(case, loop)
    assert (done.returncode, done.stderr.splitlines()[-1][: len(LAST_WORDS)]) == (1, LAST_WORDS)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_another_fault_is_told_as_ever(loop: str) -> None:
    done = ended("other", loop)
    assert (done.returncode, "ZeroDivisionError" in done.stderr, "out of memory" in done.stderr) == (0, True, False)


def test_nobody_waits_for_who_does_not_read_the_last_words() -> None:
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    try:
        while True:
            os.write(writes, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writes, True)
    assert ended("callback", "uvloop", stderr=writes).returncode == 1
    os.close(reads)
    os.close(writes)
