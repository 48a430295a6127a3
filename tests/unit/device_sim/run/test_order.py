from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from device_sim.cli import app
from device_sim.run import control
from device_sim.run.order import Extra, InvalidOrder, Order, Pause, Rate, Status, Stop, parse
from device_sim.run.recorder import Recorder, StageSpan
from device_sim.run.runner import Process, Run
from device_sim.run.stages import Acted
from device_sim.scenario.stages import Revoke, Storm
from tests.support.programs import REPOSITORY


def test_orders_are_read_as_people_write_them() -> None:
    assert [parse(text) for text in ("status", "pause", "resume", " stop\n")] == [
        Status(), Pause(True), Pause(False), Stop(),
    ]  # fmt: skip
    assert [parse(text) for text in ("rate x10", "rate 0.5")] == [Rate(10.0), Rate(0.5)]
    revoke, storm, whole = parse("revoke 5%"), parse("storm 20%"), parse("storm")
    assert isinstance(revoke, Extra)
    assert isinstance(revoke.stage, Revoke)
    assert revoke.stage.select == 0.05
    assert isinstance(storm, Extra)
    assert isinstance(storm.stage, Storm)
    assert storm.stage.drop == 0.2
    assert whole == Extra(Storm())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "there are: status, revoke 5%"),
        ("explode", "'explode' is no order"),
        ("revoke", "is no order"),
        ("revoke 5", "write '5%'"),
        ("revoke -5%", "'-5%' is no share of the fleet: write '5%'"),
        ("revoke 200%", "200% is no share: more than 0% and at most 100%"),
        ("storm 0%", "0% is no share: more than 0% and at most 100%"),
        ("rate 0", "write x10, x0.5"),
        ("rate fast", "write x10, x0.5"),
        ("rate x1e9", "write x10, x0.5"),
    ],
)
def test_what_is_no_order_is_told_with_its_remedy(text: str, words: str) -> None:
    with pytest.raises(InvalidOrder, match=words):
        parse(text)


@pytest.mark.usefixtures("runtime")
def test_a_share_below_nothing_is_read_by_the_run_and_is_no_option() -> None:
    done = CliRunner().invoke(app, ["ctl", "revoke", "-5%"])
    assert (done.exit_code, done.stderr) == (
        1,
        "fleet-sim: no run is under way here, of this user: start one with `fleet-sim run`\n",
    )


async def obey(order: Order) -> str:
    if isinstance(order, Stop):
        raise InvalidOrder("not here")
    return f"done: {order}"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The address of a socket is short; a test's own directory may not be.
    directory = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    return directory


async def test_a_run_is_told_and_answers(runtime: Path) -> None:
    said: list[str] = []
    async with control.listening(obey, said.append) as path:
        assert path is not None
        assert path.parent.parent == runtime
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert await control.tell("pause", None) == (True, "done: Pause(paused=True)")
        assert await control.tell("stop", int(path.stem)) == (False, "not here")
        assert (await control.tell("explode", None))[0] is False
        done, text = await control.tell("x" * 5000, None)
        assert not done
        assert "at most 1024 bytes" in text
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"\xff\xfe\n")
        assert json.loads(await reader.readline())["done"] is False
        writer.close()
    assert not said
    assert not path.exists()
    with pytest.raises(control.Unreachable, match="no run is under way"):
        await control.tell("status", None)


@pytest.mark.usefixtures("runtime")
async def test_a_directory_that_others_may_enter_is_not_used() -> None:
    said: list[str] = []
    async with control.listening(obey, said.append) as path:
        assert path is not None
        directory = path.parent
    directory.chmod(0o755)
    async with control.listening(obey, said.append) as path:
        assert path is None
    assert "not a directory of yours that only you may enter" in said[0]


@pytest.mark.usefixtures("runtime")
async def test_of_several_runs_all_say_which_they_are_and_one_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_PATIENCE", 0.1)

    async def gone(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with control.listening(obey, print) as path:
        assert path is not None
        with socket.socket(socket.AF_UNIX) as stopped:
            stopped.bind(str(path.with_name("1.sock")))
            stopped.listen()
            async with await asyncio.start_unix_server(gone, path.with_name("2.sock")):
                told = f"--run 1: does not answer\n--run 2: does not answer\n--run {os.getpid()}: done: Status()"
                assert await control.tell("status", None) == (True, told)
                with pytest.raises(control.Unreachable) as refused:
                    await control.tell("stop", None)
                assert str(refused.value) == f"several runs are under way: say which with --run\n{told}"
                assert await control.tell("pause", os.getpid()) == (True, "done: Pause(paused=True)")
                with pytest.raises(control.Unreachable, match="no run has process 2147483647"):
                    await control.tell("status", 2147483647)


@pytest.mark.usefixtures("runtime")
async def test_who_no_longer_waits_for_the_answer_is_told_that_the_run_goes_on_all_the_same() -> None:
    begun, forever = asyncio.Event(), asyncio.Event()

    async def never(_: Order) -> str:
        begun.set()
        await forever.wait()
        return ""

    async with control.listening(never, print):
        asks = (sys.executable, "-m", "device_sim", "ctl", "storm")
        process = await asyncio.create_subprocess_exec(*asks, stderr=asyncio.subprocess.PIPE, cwd=REPOSITORY)
        await begun.wait()
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        forever.set()
    assert process.returncode == 130
    assert err.decode() == "fleet-sim: not waited for any longer; the run carries it out all the same\n"


@pytest.mark.usefixtures("runtime")
async def test_a_run_that_ends_before_it_has_answered_has_done_nothing_but_stop() -> None:
    async def gone(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with control.listening(obey, print) as path:
        assert path is not None
        path.unlink()
        async with await asyncio.start_unix_server(gone, path):
            assert await control.tell("stop", None) == (True, "the run has ended")
            with pytest.raises(control.Unreachable, match="ended before it had done that"):
                await control.tell("storm 100%", None)


@pytest.mark.parametrize("why", ["stopped", "drains"])
async def test_a_run_that_ends_takes_no_more_orders(why: str) -> None:
    run = Run.__new__(Run)
    run.recorder, run.stopped_by, run.processes = Recorder(), None, [Process("generator", None)]
    run.scenario = cast("Any", SimpleNamespace(name="mine"))
    run.target = cast("Any", SimpleNamespace(broker_name="localhost:8883"))
    if why == "stopped":
        run.stopped_by = signal.SIGINT
    else:
        run.recorder.stages.append(StageSpan("drain", "drain", 1.0))
    assert await run.obey(Stop()) == "it is ending already: it drains, and reports"
    for order in (Pause(True), Rate(2.0), Extra(Storm())):
        with pytest.raises(InvalidOrder, match="the run is ending"):
            await run.obey(order)
    assert await run.obey(Status()) == "mine on localhost:8883: it has just begun"
    assert run.stopped_by is (signal.SIGINT if why == "stopped" else None), "one that drains is not interrupted by it"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([Acted(2, 1), Acted(1, 1)], None),
        ([Acted(), Acted()], "storm 100%: nothing was done, for no device is connected"),
        ([Acted(2, 0), Acted(1, 0)], "storm 100%: done to none of 3 devices: they have left meanwhile"),
    ],
)
async def test_what_was_done_to_nobody_is_not_said_to_be_done(parts: list[Acted], words: str | None) -> None:
    class Stand:
        def __init__(self, acted: Acted) -> None:
            self._acted = acted

        async def play(self, _number: int, _stage: object) -> Acted:
            return self._acted

    run = Run.__new__(Run)
    run.recorder, run.stopped_by, run.started, run._extra = Recorder(), None, 0.0, 0
    run.scenario = cast("Any", SimpleNamespace(stages=[]))
    run.target = cast("Any", SimpleNamespace(check_stage=lambda _: None))
    run.processes = [Process(f"worker {number}", cast("Any", Stand(acted))) for number, acted in enumerate(parts, 1)]
    if words is None:
        assert (await run.obey(Extra(Storm()))).startswith("storm 100%: done to 2 of 3 devices in 0.0 s")
        return
    with pytest.raises(InvalidOrder, match=words):
        await run.obey(Extra(Storm()))
