"""Logs are lines of JSON, whoever writes them: what reads them must not stumble over what a stranger provokes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.support.programs import REPOSITORY

_SCRIPT = """
import logging, structlog
from provisioning.program.logs import configure_logging

configure_logging({worker})
structlog.get_logger().info("ours", name="meter-1")
logging.getLogger("some.library").warning("theirs %s", "\\x1b[31m")
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("some.library").exception("failed")
logging.getLogger("some.library").info("chatter")
"""


def test_what_libraries_say_is_json_too() -> None:
    for worker in ("", "3"):
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT.format(worker=worker)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        ours, theirs, failed = map(json.loads, done.stderr.splitlines())
        assert (theirs["event"], theirs["logger"], theirs["level"]) == ("theirs \x1b[31m", "some.library", "warning")
        assert "ZeroDivisionError" in failed["exception"]
        for line in (ours, theirs, failed):
            assert line["timestamp"].endswith("Z")
            assert line.get("worker") == (int(worker) if worker else None)


_TIMED = """
import structlog
from datetime import UTC, datetime
from provisioning.program.logs import configure_logging

configure_logging()
structlog.get_logger().info("signed", not_after=datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC))
"""


def test_a_time_is_written_in_one_way_into_a_pipe_and_at_a_terminal() -> None:
    command = [sys.executable, "-c", _TIMED]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert json.loads(done.stderr)["not_after"] == "2027-01-02T03:04:05Z"
    ours, theirs = os.openpty()
    try:
        subprocess.run(command, cwd=REPOSITORY, stderr=theirs, check=True)
        shown = os.read(ours, 65536).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "2027-01-02T03:04:05Z" in shown
    assert "datetime" not in shown


_HELD_BACK = """
import structlog
{configure}
structlog.get_logger().info("closed", timestamp="2027-01-02T03:04:05.000006Z", client="meter-1")
structlog.get_logger().info("admitted", client="meter-2")
"""
_CONFIGURED = {
    "service": "from provisioning.program.logs import configure_logging\nconfigure_logging()",
    "broker": 'from broker.process.running import configure_log\nconfigure_log("info")',
}


@pytest.mark.parametrize("program", _CONFIGURED)
def test_a_line_that_was_held_back_has_the_time_at_which_it_was_said(program: str) -> None:
    command = [sys.executable, "-c", _HELD_BACK.format(configure=_CONFIGURED[program])]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    held, other = map(json.loads, done.stderr.splitlines())
    assert held["timestamp"] == "2027-01-02T03:04:05.000006Z"
    assert other["timestamp"].endswith("Z")
    assert other["timestamp"] < held["timestamp"]
    assert list(held) == list(other), "the time comes last"


@pytest.mark.parametrize(
    ("wishes", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_a_terminal_gets_colours_unless_its_reader_wants_none(wishes: dict[str, str], *, coloured: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    ours, theirs = os.openpty()
    try:
        subprocess.run(
            [sys.executable, "-c", _TIMED],
            cwd=REPOSITORY,
            env={**environment, "TERM": "xterm", **wishes},
            stderr=theirs,
            check=True,
        )
        shown = os.read(ours, 65536)
    finally:
        os.close(ours)
        os.close(theirs)
    assert (b"signed" in shown, b"\x1b[" in shown) == (True, coloured)
