"""Who may stand between `fleet-sim ctl` and a run: nobody else on the machine."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from device_sim.run import control
from device_sim.run.order import Order


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path / f"fleet-sim-{os.getuid()}"


def planted(place: Path, *, linked: bool) -> Path:
    theirs = place.with_name("theirs") if linked else place
    theirs.mkdir()
    theirs.chmod(0o700 if linked else 0o777)
    if linked:
        place.symlink_to(theirs)
    return theirs


@pytest.mark.parametrize("linked", [False, True], ids=["a directory", "a link to one"])
async def test_an_order_is_not_given_to_whoever_has_made_the_directory(place: Path, *, linked: bool) -> None:
    theirs = planted(place, linked=linked)
    heard: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readline())
        writer.write(b'{"done": true, "text": "done"}\n')
        writer.close()

    async with await asyncio.start_unix_server(answer, theirs / f"{os.getpid()}.sock"):
        with pytest.raises(control.Unreachable, match="not a directory of yours"):
            await control.tell("stop", None)
    assert heard == []


@pytest.mark.usefixtures("place")
async def test_where_no_run_has_been_there_is_none() -> None:
    with pytest.raises(control.Unreachable, match="no run is under way here"):
        await control.tell("stop", None)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_what_a_killed_run_with_the_same_process_has_left_is_in_nobodys_way(
    place: Path, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    place.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place / f"{os.getpid()}.sock"))

    async def done(_order: Order) -> str:
        return "done"

    async def told() -> tuple[bool, str]:
        async with control.listening(done, print) as path:
            assert path is not None
            return await control.tell("pause", None)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(told()) == (True, "done")


@pytest.fixture
def left(place: Path) -> tuple[Path, Path]:
    """The sockets of two runs that were killed: somebody else has the first one's number, nobody the second one's."""
    place.mkdir(mode=0o700)
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    others, nobodys = (place / f"{number}.sock" for number in (os.getppid(), ended.pid))
    for path in (others, nobodys):
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(str(path))
    return others, nobodys


async def test_what_killed_runs_have_left_is_taken_for_no_run_whoever_has_their_numbers(
    place: Path, left: tuple[Path, Path]
) -> None:
    with pytest.raises(control.Unreachable, match="no run is under way here"):
        await control.tell("stop", None)

    async def done(_order: Order) -> str:
        return "done"

    async with control.listening(done, print) as own:
        assert own is not None
        assert await control.tell("pause", None) == (True, "done")
        assert set(place.iterdir()) == {left[0], own}  # noqa: ASYNC240 - it waits for nobody
