"""What the three programs say at a narrow terminal: no word of it is cut."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import termios
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.support.programs import forking_python

WIDTH = 80
LONG = "/no/such/place/of-a-name-that-is-not-short"


def said_at_a_terminal(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the lines of standard error, of a terminal, while standard output is none."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    try:
        done = subprocess.run(
            [forking_python(module), "-m", module, *arguments], stdout=subprocess.DEVNULL, stderr=theirs,
            env={**environment, "TERM": "xterm", "NO_COLOR": "1"}, cwd=Path(__file__).parents[3], timeout=120,
            check=False,
        )  # fmt: skip
        assert done.returncode
        return [line.strip() for line in os.read(ours, 65536).decode().splitlines()]
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    [
        ("provisioning", ["device", "show", "meter-1", "--dir", LONG], "fleet-provisioning:"),
        ("broker", ["run", "--config", LONG], "fleet-broker:"),
        ("broker", ["status", "--state-dir", LONG], "fleet-broker:"),
        ("device_sim", ["run", "smoke", "--fleet", LONG, "--broker", "localhost:1"], "fleet-sim:"),
    ],
)
def test_a_long_line_goes_on_below_at_a_space(module: str, arguments: Sequence[str], words: str) -> None:
    lines = said_at_a_terminal(module, arguments)
    assert lines[0].startswith(words), lines
    assert len(lines) > 1, lines
    assert all(len(line) <= WIDTH for line in lines)
    assert LONG in " ".join(lines)  # In one piece.


@pytest.mark.parametrize(
    "arguments", [["attack", "--list"], ["delivery", "--list"], ["qualify", "--list"], ["doctor"]], ids=" ".join
)
def test_lists_go_on_in_their_column(arguments: Sequence[str]) -> None:
    lines = listed_at_a_terminal("device_sim", arguments)
    assert [line for line in lines if len(line) > WIDTH] == []
    beginnings = {len(line) - len(line.lstrip()) for line in lines}
    assert len(beginnings) <= 2, f"lines begin with the name, or below the text: {beginnings}"


def listed_at_a_terminal(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the lines that a program writes to a terminal."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    written = b""
    with subprocess.Popen(
        [forking_python(module), "-m", module, *arguments], stdout=theirs,
        env={**environment, "TERM": "dumb"}, cwd=Path(__file__).parents[3],
    ) as program:  # fmt: skip
        os.close(theirs)
        with contextlib.suppress(OSError):  # EIO: the program has closed it.
            while more := os.read(ours, 65536):
                written += more
        assert program.wait(120) == 0
    os.close(ours)
    return written.decode().splitlines()
