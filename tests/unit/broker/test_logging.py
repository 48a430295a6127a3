"""The log of a broker: a JSON object a line, with the traceback of a defect; and no trouble where it is not written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import REPOSITORY

PROGRAM = """
import structlog
from broker.admission.refusal import RefusalCode
from broker.process.running import configure_log

configure_log("info")
log = structlog.get_logger("broker")
log.info("refused", code=RefusalCode.REVOKED, serial="ab", name="Z\u00e4hler", of=object)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("connection failed", code="INTERNAL_ERROR")
print("went on")
"""


def run(stderr: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=stderr, text=True, timeout=60, check=False,
        cwd=REPOSITORY,
    )  # fmt: skip


def test_each_line_is_json_and_a_defect_has_its_traceback() -> None:
    done = run(subprocess.PIPE)
    refused, failed = map(json.loads, done.stderr.splitlines())
    assert (refused["event"], refused["code"], refused["level"]) == ("refused", "REVOKED", "info")
    assert (refused["name"], refused["of"]) == ("Z\u00e4hler", "<class 'object'>")
    assert failed["code"] == "INTERNAL_ERROR"
    assert failed["exception"].startswith("Traceback (most recent call last):")
    assert failed["exception"].endswith("ZeroDivisionError: division by zero")


def test_at_a_terminal_nothing_that_a_client_has_chosen_reaches_it_unescaped() -> None:
    reads, writes = os.openpty()
    try:
        with os.fdopen(writes, "w") as terminal:
            program = PROGRAM.replace('"ab"', r'"y\x1b[2J\x07"')
            subprocess.run(
                [sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=terminal, timeout=60, check=True,
                cwd=REPOSITORY,
            )  # fmt: skip
            shown = os.read(reads, 65536).decode()
    finally:
        os.close(reads)
    assert r"y\x1b[2J\x07" in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown
    assert "Z\u00e4hler" in shown
    assert "ZeroDivisionError" in shown


def test_a_log_that_cannot_be_written_is_lost_and_nothing_else() -> None:
    with Path("/dev/full").open("w") as full:
        done = run(full)
    assert done.stdout == "went on\n"


@pytest.mark.parametrize(
    "begin", ["broker.process.running.configure_log('info')", "provisioning.program.logs.configure_logging()"]
)
def test_a_reader_of_the_log_that_has_stopped_holds_nobody_up(begin: str) -> None:
    program = f"""
import logging
import broker.process.running
import provisioning.program.logs
import structlog

{begin}
for number in range(1000):
    structlog.get_logger("broker").info("refused", number=number)
    logging.getLogger("library").warning("nobody hears of number %d", number)
print("went on")
"""
    reads, writes = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=writes, text=True, timeout=60, check=False,
            cwd=REPOSITORY,
        )  # fmt: skip
    finally:
        os.close(reads)
        os.close(writes)
    assert done.stdout == "went on\n"


def test_what_libraries_warn_of_is_a_line_like_any_other() -> None:
    program = "import logging; from broker.process.running import configure_log; configure_log('info'); "
    program += "logging.getLogger('asyncio').error('Task exception was never retrieved')"
    done = subprocess.run(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=60, check=True, cwd=REPOSITORY
    )
    said = json.loads(done.stderr)
    expected = ("Task exception was never retrieved", "asyncio", "error")
    assert (said["event"], said["logger"], said["level"]) == expected
