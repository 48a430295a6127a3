"""What a program has left behind is ended, and nobody else who has its number by now."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Iterator

import pytest

from device_sim.qualify.device import _Running
from device_sim.stage.foreign_process import stop
from device_sim.stage.left_behind import end_left_behind, left_behind
from tests.support.broker_process import wait_until


@pytest.fixture
def another() -> Iterator[subprocess.Popen[bytes]]:
    """A program of somebody else's, in a session of its own."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as program:
        yield program
        program.kill()


class Ended(asyncio.subprocess.Process):
    """What `asyncio` knows of a program that has ended, whose *number* somebody else has now."""

    def __init__(self, number: int) -> None:
        self.pid = number

    @property
    def returncode(self) -> int:
        return 0

    def send_signal(self, signal: int) -> None:
        del signal
        raise ProcessLookupError

    async def wait(self) -> int:
        return 0


async def test_who_has_the_number_of_a_program_that_has_ended_is_left_alone(another: subprocess.Popen[bytes]) -> None:
    """It was killed: with 32,768 numbers somebody has one again after some minutes."""
    device = Ended(another.pid)
    assert _Running(device).gone
    await stop(device)
    with pytest.raises(subprocess.TimeoutExpired):
        another.wait(0.1)


def test_what_is_left_of_a_session_is_ended() -> None:
    script = "sleep 600 & sleep 600 & echo"
    with subprocess.Popen(["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE) as leader:
        assert leader.stdout is not None
        assert leader.stdout.readline() == b"\n"
        assert leader.wait(60) == 0
        left = left_behind(leader.pid)
        assert len(left) == 2
        end_left_behind(leader.pid)
    wait_until(lambda: left_behind(leader.pid) == [], "both have ended")


def test_a_session_is_nobody_s_as_long_as_its_leader_is_there(another: subprocess.Popen[bytes]) -> None:
    assert left_behind(another.pid) == []
    another.send_signal(signal.SIGKILL)
    another.wait(60)
    assert left_behind(another.pid) == []
