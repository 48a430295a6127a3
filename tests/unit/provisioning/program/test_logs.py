"""Logs are lines of JSON, whoever writes them: what reads them must not stumble over what a stranger provokes."""

from __future__ import annotations

import json
import subprocess
import sys

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
