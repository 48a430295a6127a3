"""What commands print: a table, and on a terminal that is too narrow for it, rows of several lines."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
import termios

import pytest

from broker.admin_command import print_table
from broker.crl_commands import _print_status

COLUMNS = ("client id", "serial")
ROWS = [("meter-1", "5e7de11f0ba7119a3b584cb5685734fb"), ("meter-2", "4830faef90a81da9cfb6010eb110de05")]
TABLE = """\
client id  serial
meter-1    5e7de11f0ba7119a3b584cb5685734fb
meter-2    4830faef90a81da9cfb6010eb110de05
"""
RECORDS = """\
client id  meter-1
serial     5e7de11f0ba7119a3b584cb5685734fb

client id  meter-2
serial     4830faef90a81da9cfb6010eb110de05
"""
PROGRAM = f"from broker.admin_command import print_table; print_table({COLUMNS!r}, {ROWS!r})"


def on_a_terminal(width: int) -> str:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    try:
        subprocess.run([sys.executable, "-c", PROGRAM], stdout=theirs, check=True, env=environment, timeout=60)
        return os.read(ours, 65536).decode().replace("\r\n", "\n")
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize(("width", "shown"), [(120, TABLE), (40, RECORDS)])
def test_a_table_that_does_not_fit_is_shown_row_by_row(width: int, shown: str) -> None:
    assert on_a_terminal(width) == shown


def test_into_a_pipe_goes_a_table_however_wide(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, ROWS)
    assert capsys.readouterr().out == TABLE


def test_a_broker_that_was_not_started_anew_since_an_upgrade_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    _print_status({"lists": [], "feed_age_seconds": 0.5, "newcomers_admitted": True, "alarms": {}})
    assert capsys.readouterr().out.splitlines() == [
        "feed age seconds    0.5",
        "newcomers admitted  yes",
        "alarms              none",
    ]
