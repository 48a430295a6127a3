"""With real child processes: small Python modules made for the purpose."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from device_sim.stage.processes import ChildFailed, run_to_end, running

PROGRAMS = {
    "obedient": "import time; print('noise'); print('obedient ready one two', flush=True); time.sleep(600)",
    "deaf": (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf ready', flush=True); "
        "time.sleep(600)"
    ),
    "broken": "import sys; sys.exit('no such file')",
    "failed": """
print("noise", flush=True)
def this(depth): that(depth - 1) if depth else open("nowhere.pem")
def that(depth): this(depth)
try: this(30)
except OSError as error: raise RuntimeError("a part has failed") from error
""",
    "slow": "import time; time.sleep(600)",
    "seen": "import sys, time; there = open(sys.argv[1], 'w'); print('begun', file=there, flush=True); time.sleep(600)",
    "talkative": "print('talkative ready', flush=True)\nwhile True: print('x' * 1000)",
    "brief": "print('done')",
}


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, source in PROGRAMS.items():
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    log = tmp_path / "log"
    log.write_text("noise\n" * 20_000)  # More than anybody is shown.
    return log


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_child_is_ready_when_it_says_so_and_gone_afterwards(log: Path) -> None:
    async with running("obedient", ["obedient"], log=log, ready="obedient ready ", deadline=20) as child:
        assert child.ready == ["one", "two"]
        assert is_running(child.pid)
    assert not is_running(child.pid)


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from device_sim.stage.processes import running

async def main():
    async with running("obedient", ["obedient"], log=Path(sys.argv[1]), ready="obedient ready ", deadline=20) as child:
        print(child.pid, flush=True)
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


def test_a_child_ends_when_nobody_was_left_to_stop_it(log: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{log.parent}:{Path(__file__).parents[4]}"}
    parent = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(log)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    try:
        parent.communicate()  # The end of its input.
        assert parent.returncode == -signal.SIGKILL
        ended, _, _ = select.select([child], [], [], 20)
        assert ended
    finally:
        os.close(child)


KILLED_BEFORE_ITS_END = """
import asyncio, sys
from pathlib import Path
from device_sim.stage.processes import run_to_end

asyncio.run(run_to_end("seen", ["seen", sys.argv[2]], log=Path(sys.argv[1]), deadline=600))
"""


def test_a_command_ends_when_nobody_is_left_to_wait_for_it(log: Path) -> None:
    """A CA was still being made, with its keys, in a directory that the next command was removing."""
    os.mkfifo(seen := log.with_name("seen"))
    environment = {**os.environ, "PYTHONPATH": f"{log.parent}:{Path(__file__).parents[4]}"}
    parent = subprocess.Popen([sys.executable, "-c", KILLED_BEFORE_ITS_END, str(log), str(seen)], env=environment)
    with seen.open("rb", buffering=0) as there:  # Held open by the child alone.
        assert there.readline() == b"begun\n"
        parent.kill()
        parent.wait()
        ended, _, _ = select.select([there], [], [], 20)
        assert ended
        assert there.read() == b""


async def test_a_child_that_ends_too_soon_shows_its_last_words(log: Path) -> None:
    with pytest.raises(ChildFailed) as failed:
        async with running("failed", ["failed"], log=log, ready="ready", deadline=20):
            pytest.fail("it was never ready")
    # With the whole of the cause of what it says last.
    first, traceback, *lines, last = str(failed.value).split("\n    ")
    assert first == "failed ended with status 1 before it was ready:"
    assert (traceback, last) == ("Traceback (most recent call last):", "RuntimeError: a part has failed")
    assert "FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.pem'" in lines
    assert len(lines) > 60


async def test_a_child_that_is_never_ready_is_given_up(log: Path) -> None:
    with pytest.raises(ChildFailed, match=r"slow was not ready within 0\.3 s"):
        async with running("slow", ["slow"], log=log, ready="ready", deadline=0.3):
            pytest.fail("it was never ready")


async def test_a_child_that_ignores_sigterm_is_killed(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device_sim.stage.processes._GRACE", 0.2)
    async with running("deaf", ["deaf"], log=log, ready="deaf ready", deadline=20) as child:
        pass
    assert not is_running(child.pid)


async def test_an_exception_stops_the_child(log: Path) -> None:
    with pytest.raises(RuntimeError, match="ours"):
        async with running("obedient", ["obedient"], log=log, ready="obedient ready ", deadline=20) as child:
            raise RuntimeError("ours")
    assert not is_running(child.pid)


async def test_a_child_that_dies_while_it_is_needed_is_noticed(log: Path) -> None:
    async with running("obedient", ["obedient"], log=log, ready="obedient ready ", deadline=20) as child:
        watch = asyncio.create_task(child.watch())
        os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(ChildFailed, match="obedient ended with status -9"):
            await asyncio.wait_for(watch, 20)


async def test_a_talkative_child_does_not_block_on_its_pipe(log: Path) -> None:
    async with running("talkative", ["talkative"], log=log, ready="talkative ready", deadline=20) as child:
        await asyncio.sleep(0.3)  # Long enough to fill any pipe that nobody reads.
    assert not is_running(child.pid)


async def test_a_command_is_run_to_its_end(log: Path) -> None:
    await run_to_end("brief", ["brief"], log=log, deadline=20)


@pytest.mark.parametrize(
    ("name", "deadline", "reason"),
    [("broken", 20, r"ended with status 1:\n(    noise\n){14}    no such file$"), ("slow", 0.2, "did not end")],
)
async def test_a_command_that_fails_shows_its_last_words(log: Path, name: str, deadline: float, reason: str) -> None:
    with pytest.raises(ChildFailed, match=f"^{name} {reason}"):
        await run_to_end(name, [name], log=log, deadline=deadline)
