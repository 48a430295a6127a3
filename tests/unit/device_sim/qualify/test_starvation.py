"""Slowness is no verdict on a machine that others hold; on any other it is, and so is whatever else a device does."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from http import HTTPStatus
from pathlib import Path

import pytest

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.connect import Connect
from broker.mqtt.packets import Publish
from device_sim import core_wait
from device_sim.attack.verdict import Judgement, Outcome, Verdict
from device_sim.qualify import judging, renewal_judging, starvation
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.device import Program
from device_sim.qualify.enrolment_stand import Asked
from device_sim.qualify.judging import Line
from device_sim.qualify.papers import Papers
from device_sim.qualify.qualifying import exit_code
from device_sim.qualify.run import Bench, qualify
from device_sim.qualify.stages import pick
from device_sim.qualify.starvation import NOTHING, Waited, Watch, on_this_machine
from device_sim.report import ExitCode
from tests.support.machine import Busy, Quiet
from tests.support.needed import needed

PASS, WARN, FAIL, SKIP, INVALID = Verdict.PASS, Verdict.WARN, Verdict.FAIL, Verdict.SKIP, Verdict.INVALID
QUIET, STARVED = Waited(0.1, 20.0), Waited(8.0, 20.0)


@pytest.mark.parametrize(
    ("line", "waited", "expected"),
    [
        (Line("x", "", FAIL), STARVED, FAIL),  # Nothing to do with time.
        (Line("x", "", FAIL, by_time=2.0), Waited(1.9, 20.0), FAIL),  # Too late by more than it had to wait.
        (Line("x", "", FAIL, by_time=2.0), Waited(2.1, 20.0), INVALID),  # The machine is not starved, but this late.
        (Line("x", "", FAIL, by_time=9.0), STARVED, FAIL),
        (Line("x", "", FAIL, by_time=0.0), QUIET, FAIL),
        (Line("x", "", FAIL, by_time=0.0), STARVED, INVALID),
        (Line("x", "", SKIP, by_time=0.0), QUIET, SKIP),
        (Line("x", "", SKIP, by_time=0.0), STARVED, INVALID),
        (Line("x", "", PASS), STARVED, PASS),
        (Line("x", "", PASS, by_time=0.05), QUIET, PASS),
        (Line("x", "", PASS, by_time=2.0), STARVED, INVALID),  # It may have passed because it was slow.
        (Line("x", "", PASS, by_time=9.0), STARVED, PASS),
        (Line("x", "", FAIL, by_time=0.0), NOTHING, FAIL),
        (Line("x", "", SKIP, by_time=0.0), Waited(0.04, 0.2), SKIP),  # The program ended at once.
        (Line("x", "", SKIP, by_time=0.0), Waited(0.11, 0.2), INVALID),
    ],
)
def test_only_what_the_wait_explains_is_invalid(line: Line, waited: Waited, expected: Verdict) -> None:
    judged = on_this_machine(line, waited)
    assert judged.verdict is expected
    assert ("repeat on a quieter machine" in judged.why) is (expected is INVALID)


def row(*waits: float) -> list[Attempt]:
    now, attempts = 0.0, [Attempt(0.0, ended=0.0, by_device=False)]
    for wait in waits:
        now += wait
        attempts.append(Attempt(now, ended=now, by_device=False))
    return attempts


def served(at: float, ended: float | None, keep_alive: int = 1) -> Attempt:
    connect = Connect("d", keep_alive=keep_alive, protocol_version=ProtocolVersion.V311)
    return Attempt(at, tls=at, packets=[(at, connect)], answered=at, ended=ended)


def sender(at: float, payload: bytes) -> Attempt:
    made = served(at, None)
    made.packets.append((at, Publish("t", payload, QoS.AT_LEAST_ONCE, packet_id=1)))
    return made


def enrolled(at: float, status: HTTPStatus) -> Asked:
    return Asked(at, "/.well-known/est/simplereenroll", certificate=True, status=status)


@pytest.mark.parametrize(
    ("lines", "name", "plain"),
    [
        (judging.verifies([]), "sends-nothing", SKIP),
        (judging.verifies([Attempt(0.0)]), "sends-nothing", SKIP),
        (judging.refuses_old_tls([Attempt(0.0)]), "sends-nothing", SKIP),
        (judging.verifies([Attempt(0.0, tls=0.1)]), "sends-nothing", PASS),  # What it says may be under way.
        (judging.verifies([Attempt(0.0, tls=0.1, ended=0.2), Attempt(1.0, tls=1.1)]), "sends-nothing", PASS),
        (judging.comes_back(row(0.3, 0.4, 0.5), None, 20.0), "comes-back", PASS),  # Pauses, or no core?
        (judging.comes_back(row(0.01, 0.02, 0.02, 0.01), None, 20.0), "comes-back", FAIL),
        (judging.notices_silence([served(0.0, 5.0)], 20.0), "notices", FAIL),
        (judging.notices_silence([served(0.0, None, 7)], 20.0), "notices", FAIL),
        (judging.notices_silence([served(0.0, 0.1, 7)], 20.0), "notices", PASS),  # It may have left for another reason.
        (judging.serves_slowly([Attempt(0.0)]), "is-served", FAIL),
        (judging.habits([]), "connects", FAIL),
        (judging.habits([served(0.0, 1.0), Attempt(2.0)]), "stays", WARN),
        (judging.habits([served(0.0, None)]), "waits-for-connack", PASS),  # What it sends in a hurry came too late.
        (judging.gives_up([Attempt(0.0)], 20.0), "gives-up", WARN),
        (judging.checks_staple([Attempt(0.0)]), "sends-nothing", SKIP),
        (judging.redelivers([sender(0.0, b"a"), served(2.0, None)], 20.0), "resends", FAIL),
        (renewal_judging.renews([], 0, given=True, came=False), "renews", FAIL),
        (
            renewal_judging.renews(
                [enrolled(0.0, HTTPStatus.ACCEPTED), enrolled(2.5, HTTPStatus.OK)], 2, given=True, came=True
            ),
            "respects-retry-after", PASS,
        ),
    ],
)  # fmt: skip
def test_what_time_alone_decides(lines: list[Line], name: str, plain: Verdict) -> None:
    line = next(each for each in lines if each.name == name)
    assert on_this_machine(line, QUIET).verdict is plain
    assert on_this_machine(line, STARVED).verdict is INVALID


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        (judging.verifies([]), "sends-nothing"),
        (judging.verifies([Attempt(0.0, tls=0.1)]), "sends-nothing"),
        (judging.serves_slowly([Attempt(0.0)]), "is-served"),
        (judging.habits([]), "connects"),
        (judging.habits([served(0.0, 1.0), Attempt(2.0)]), "stays"),
        (judging.gives_up([Attempt(0.0)], 20.0), "gives-up"),
        (judging.comes_back([Attempt(0.0)], None, 20.0), "comes-back"),
        (judging.notices_silence([served(0.0, 3.0)], 20.0), "comes-again"),
        (judging.notices_silence([served(0.0, 3.0), Attempt(4.0)], 20.0), "notices"),
        (judging.waits([[1.0, 1.0, 1.0]] * 5), "waits-grow"),
        (judging.waits([[1.0, 1.0, 1.0]] * 5), "waits-scatter"),
        (judging.waits([[0.4, 1.0, 2.0, 5.0], [0.1, 0.5, 3.0], [0.6, 0.9, 1.0], [0.3, 1.5, 2.5]]), "waits-grow"),
        (judging.waits([[0.4, 1.0, 2.0, 5.0], [0.1, 0.5, 3.0], [0.6, 0.9, 1.0], [0.3, 1.5, 2.5]]), "waits-scatter"),
        (judging.redelivers([sender(0.0, b"a"), served(2.0, None)], 20.0), "resends"),
    ],
)
def test_where_no_number_says_how_late_only_a_starved_machine_is_an_excuse(lines: list[Line], name: str) -> None:
    line = next(each for each in lines if each.name == name)
    assert on_this_machine(line, Waited(2.9, 20.0)).verdict is line.verdict, "14.5 %"
    assert on_this_machine(line, Waited(3.1, 20.0)).verdict is INVALID, "15.5 %"


@pytest.mark.parametrize(
    ("lines", "name", "expected"),
    [
        (judging.verifies([served(0.0, None)]), "sends-nothing", FAIL),
        (judging.verifies([Attempt(0.0, offered=0x0304, refusal="unknown_ca")]), "sends-nothing", PASS),
        (judging.refuses_old_tls([Attempt(0.0, tls=0.1)]), "sends-nothing", FAIL),
        (judging.comes_back(row(*[0.001] * 200), None, 20.0), "comes-back", FAIL),  # No wait makes that pauses.
        (judging.comes_back(row(5.0, 6.0, 7.0), None, 20.0), "comes-back", PASS),
        (judging.notices_silence([served(0.0, None, 0)], 20.0), "notices", FAIL),
        (judging.notices_silence([served(0.0, 19.0)], 20.0), "notices", FAIL),
        (judging.habits([], "it ended with status 3"), "connects", FAIL),
        (judging.checks_staple([Attempt(0.0), Attempt(1.0, asks_for_staple=False)]), "sends-nothing", SKIP),
        (judging.redelivers([sender(0.0, b"a"), sender(2.0, b"b")], 20.0), "resends", FAIL),
        (judging.redelivers([sender(0.0, b"a"), served(1.0, 1.5), sender(2.0, b"b")], 20.0), "resends", FAIL),
        (judging.verifies([Attempt(0.0, tls=0.1, ended=0.2)]), "sends-nothing", PASS),
    ],
)
def test_what_time_does_not_decide_is_judged_on_any_machine(lines: list[Line], name: str, expected: Verdict) -> None:
    line = next(each for each in lines if each.name == name)
    assert on_this_machine(line, STARVED).verdict is expected


def outcome(name: str, verdict: Verdict) -> Outcome:
    return Outcome(name, "", (), 1.0, Judgement(verdict))


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([outcome("good.connects", PASS), outcome("x.notices", INVALID)], ExitCode.INVALID),
        ([outcome("good.connects", PASS), outcome("x.y", WARN), outcome("x.notices", INVALID)], ExitCode.INVALID),
        ([outcome("x.notices", INVALID), outcome("x.comes-back", FAIL)], ExitCode.ERROR),
        ([outcome("x.notices", INVALID), outcome("x.sends-nothing", FAIL)], ExitCode.SECURITY),
        ([outcome("x.sends-nothing", INVALID)], ExitCode.INVALID),
    ],
)
def test_no_verdict_has_its_own_exit_code(outcomes: list[Outcome], code: ExitCode) -> None:
    assert exit_code(outcomes) is code


# What is measured


def watched(monkeypatch: pytest.MonkeyPatch, stand: float, *threads: tuple[float, float]) -> float:
    """Return what counts as waited, if the stand waits so long and each thread of the device has run and waited."""
    waits = iter([0.0, stand])
    monkeypatch.setattr(core_wait, "seconds_waited", lambda: next(waits))
    monkeypatch.setattr(starvation, "_session_of", lambda _: 1)
    watch = Watch(None)
    watch._session = 1
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([self / "7"]))
    monkeypatch.setattr(starvation, "_threads_of", lambda _: {str(i): times for i, times in enumerate(threads)})
    watch.look()
    return watch.waited.seconds


@pytest.mark.parametrize(
    ("stand", "threads", "seconds"),
    [
        (3.0, [], 3.0),
        (1.0, [(0.2, 4.0)], 4.8),  # Both; while the device ran, the stand waited for that.
        (0.0, [(0.5, 4.0), (0.5, 2.0)], 5.0),
        (0.0, [(5.0, 4.9), (5.0, 4.9), (5.0, 4.9)], 0.0),  # It computes in three threads, and waits for itself.
        (2.0, [(5.0, 0.0)], 0.0),
    ],
)
def test_what_the_device_itself_has_held_is_no_wait(
    monkeypatch: pytest.MonkeyPatch, stand: float, threads: list[tuple[float, float]], seconds: float
) -> None:
    assert watched(monkeypatch, stand, *threads) == pytest.approx(seconds)


async def test_all_processes_of_a_device_are_looked_at_and_no_others() -> None:
    script = "sleep 60 & echo $!; wait; exec sleep 60"
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", script, stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    try:
        assert process.stdout is not None
        child = int(await process.stdout.readline())
        watch = Watch(process.pid)
        watch.look()
        seen = {int(thread.split("/")[2]) for thread in watch._threads}
        assert seen == {process.pid, child}
        os.kill(child, signal.SIGKILL)
        while starvation._threads_of(str(child)):
            await asyncio.sleep(0.01)
        watch.look()
        assert {int(thread.split("/")[2]) for thread in watch._threads} == {process.pid, child}, "what it waited stays"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


# A real device, and a machine as the test says


def _new(place: Path) -> Path:
    place.mkdir()
    return place


async def tried(place: Path, command: str, stage: str, machine: type[Quiet]) -> tuple[dict[str, Verdict], ExitCode]:
    papers = Papers("device-under-test", ["127.0.0.1", "localhost"])
    bench = Bench(papers, Program(command), _new(place), "127.0.0.1", 0, 1.0, machine)
    outcomes = await qualify(bench, pick([stage]), 1, lambda _: None, lambda _: None)
    return {each.name: each.verdict for each in outcomes}, exit_code(outcomes)


async def test_a_device_that_does_not_come_in_time_fails_unless_others_hold_the_machine(tmp_path: Path) -> None:
    """It takes a minute to start, on any machine: it cannot come within a window of one second."""
    assert await tried(tmp_path / "quiet", "sleep 60", "good", Quiet) == ({"good.connects": FAIL}, ExitCode.ERROR)
    assert await tried(tmp_path / "busy", "sleep 60", "good", Busy) == ({"good.connects": INVALID}, ExitCode.INVALID)


async def test_a_device_that_believes_everybody_fails_on_any_machine(tmp_path: Path) -> None:
    needed("mosquitto_sub")
    believing = "mosquitto_sub --insecure -h localhost -p {port} --cafile {cafile} -i d -t {commands}"
    verdicts, code = await tried(tmp_path / "busy", believing, "server-wrong-name", Busy)
    assert (verdicts["server-wrong-name.sends-nothing"], code) == (FAIL, ExitCode.SECURITY)


async def test_a_launcher_that_has_ended_is_not_the_device_that_it_has_left_running(tmp_path: Path) -> None:
    """What it started has not given up: it waits for the server that says nothing."""
    left = "sh -c 'openssl s_client -connect localhost:{port} -CAfile {cafile} & exit 3'"
    papers = Papers("device-under-test", ["127.0.0.1", "localhost"])
    bench = Bench(papers, Program(left), tmp_path, "127.0.0.1", 0, 3.0, Quiet)
    outcomes = await qualify(bench, pick(["no-handshake"]), 1, lambda _: None, lambda _: None)
    (line,) = (each for each in outcomes if each.name == "no-handshake.comes-back")
    assert (line.verdict, line.judgement.why) == (
        WARN,
        "still in its first connection after 3 s: does it ever give up?",
    )


class _Machine:
    """What the kernel says: the threads of the device, which is this process, and the stand's own wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.threads: dict[str, tuple[float, float]] = {}
        self.stand = 0.0
        monkeypatch.setattr(starvation, "_session_of", lambda name: 7 if name == str(os.getpid()) else 8)
        monkeypatch.setattr(starvation, "_threads_of", lambda _: dict(self.threads))
        monkeypatch.setattr(core_wait, "seconds_waited", lambda: self.stand)


def test_what_was_waited_since_it_began_counts_less_what_the_device_itself_has_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = _Machine(monkeypatch)
    machine.threads, machine.stand = {"one": (0.3, 1.0)}, 2.0
    watch = Watch(7)
    machine.threads, machine.stand = {"one": (1.0, 4.0)}, 10.0
    watch.begin()
    machine.threads, machine.stand = {"one": (1.5, 6.0), "two": (0.2, 1.0)}, 13.0
    watch.look()
    # The stand: 3.0 less the 0.7 for which the two have run. The first: 2.0 less 0.2 of the second; that: 1.0 less 0.5.
    assert watch.waited.seconds == pytest.approx(2.3 + 1.8 + 0.5)
    assert 0.0 <= watch.waited.elapsed < 60.0
    machine.threads = {}
    watch.look()
    assert watch.waited.seconds == pytest.approx(4.6), "what has ended has waited all the same"


async def test_a_device_is_looked_at_again_and_again_until_that_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _Machine(monkeypatch)
    monkeypatch.setattr(starvation, "_LOOK_AGAIN", 0.001)
    watch = Watch(7)
    looking = asyncio.create_task(watch.keep_looking())
    try:
        for waited in (1.0, 2.0):
            machine.threads = {"one": (0.0, waited)}
            async with asyncio.timeout(30):
                while watch.waited.seconds != waited:
                    await asyncio.sleep(0.001)
    finally:
        looking.cancel()
        await asyncio.wait([looking])


def test_the_waits_of_several_stages_add_up() -> None:
    assert Waited(1.0, 5.0) + Waited(2.0, 3.0) == Waited(3.0, 8.0)
    assert NOTHING + Waited(2.0, 3.0) == Waited(2.0, 3.0)


def test_what_a_thread_has_run_and_waited_is_told_in_seconds() -> None:
    main = threading.main_thread()
    assert main.ident is not None
    ran, waited = starvation._threads_of(str(os.getpid()))[f"/proc/{os.getpid()}/task/{os.getpid()}"]
    assert ran == pytest.approx(time.clock_gettime(time.pthread_getcpuclockid(main.ident)), abs=5.0)
    assert waited == pytest.approx(core_wait.seconds_waited(), abs=5.0)
    assert starvation._threads_of("0") == {}
    assert starvation._session_of(str(os.getpid())) == os.getsid(0)
    assert starvation._session_of("0") is None
