"""`fleet-sim` as a user starts it, and a small scenario for it.

It is forked, and so are the service and the broker that it starts: `tests.support.programs`. With *afresh* all have
their own interpreter, for tests of parents and children.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from device_sim.stage.stage import Stage
from tests.support.last_words import last_words
from tests.support.programs import forking_python, stands_in
from tests.support.scenarios import ON_ANY_MACHINE

SOURCE = Path(__file__).parents[2]
TINY = (
    ON_ANY_MACHINE
    + """
name = "tiny"
devices = 12
seed = 7
[[groups]]
name = "meters"
telemetry = { every = "200ms", jitter = "20%" }
backoff = { base = "100ms", cap = "500ms" }
[[stages]]
ramp = { rate = 50 }
[[stages]]
command = { rate = 50, deadline = "60s" }
[[stages]]
storm = { drop = "50%" }
[[stages]]
renew = { select = "20%", rate = 20 }
[[stages]]
revoke = { select = "20%", rate = 20, deadline = "60s" }
[[stages]]
hold = "1s"
[thresholds]
lost = ["== 0"]
altered = ["== 0"]
duplicated = ["== 0"]
unanswered_commands = ["== 0"]
failed_renewals = ["== 0"]
unreached = ["== 0"]
revoked_closed = ["max < 60000"]
"""
)


@asynccontextmanager
async def fleet_sim(tmp_path: Path, *arguments: str, afresh: bool = False) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable if afresh else forking_python(), "-m", "device_sim", *arguments,
        cwd=SOURCE,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(SOURCE)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ran(tmp_path: Path, *arguments: str, afresh: bool = False) -> tuple[int, str, str]:
    async with fleet_sim(tmp_path, *arguments, afresh=afresh) as process:
        out, err = await last_words(process)
        assert process.returncode is not None
        assert b"Traceback" not in err, err.decode()
        return process.returncode, out.decode(), err.decode()


async def until_said(process: asyncio.subprocess.Process, words: str) -> None:
    assert process.stderr is not None
    said: list[str] = []
    async with asyncio.timeout(60):
        async for line in process.stderr:
            said.append(line.decode())
            if words in said[-1]:
                return
        code = await process.wait()
    pytest.fail(f"it ended with {code} before it said {words!r}, and had said:\n{''.join(said)}")


def enrol(stage: Stage, fleet: Path, *more: str) -> list[str]:
    provisioning = stage.directory / "provisioning"
    return [
        "enrol", str(fleet), "--provisioning", stage.provisioning_url, "--cafile", str(stage.anchors),
        "--cert", str(provisioning / "operator.crt"), "--key", str(provisioning / "operator.key"), *more,
    ]  # fmt: skip


def left_in(directory: Path) -> list[str]:
    """Return what commands with their temporary files in *directory* have left there, of whatever version."""
    return [path.name for path in directory.iterdir() if path.name.startswith(("fleet-sim.held-", "fleetgate-"))]


def left_running(directory: Path, *words: str) -> list[int]:
    """Return the processes that were started to work in *directory*, with all of *words* in their command line."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal() and int(process.name) != os.getpid():
            try:
                command_line = (process / "cmdline").read_bytes()
            except OSError:
                continue  # It has ended since it was listed.
            if stands_in(command_line):
                continue  # It stands for a forked process, which is found itself.
            if all(os.fsencode(word) in command_line for word in (str(directory), *words)):
                found.append(int(process.name))
    return found
