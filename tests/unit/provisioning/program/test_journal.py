"""Lines for systemd's journal, by a stream that is one as far as a program can see."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from provisioning.program.journal import failure, is_journal, with_priority
from tests.support.programs import REPOSITORY

LOGS = """
import logging, sys
{configure}
import structlog
log = structlog.get_logger("of a test")
log.info("began")
log.warning("hm")
log.error("failed", detail="two\\nlines")
logging.getLogger("library").warning("as it says")
"""
CONFIGURED = {
    "provisioning": "from provisioning.program.logs import configure_logging; configure_logging()",
    "broker": "from broker.process.running import configure_log; configure_log('info')",
}


def logged(program: str, tmp_path: Path, *, to_journal: bool) -> list[str]:
    """Return what a program logs to a file; *to_journal*: that it takes for the journal."""
    with (tmp_path / "log").open("w+", encoding="utf-8") as log:
        found = os.fstat(log.fileno())
        stream = f"{found.st_dev}:{found.st_ino}" if to_journal else "1:2"
        subprocess.run(
            [sys.executable, "-c", LOGS.format(configure=CONFIGURED[program])],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "JOURNAL_STREAM": stream},
            stderr=log, check=True, timeout=60,
        )  # fmt: skip
        log.seek(0)
        return log.read().splitlines()


@pytest.mark.parametrize("program", CONFIGURED)
def test_a_line_in_the_journal_has_the_priority_of_its_level(program: str, tmp_path: Path) -> None:
    lines = logged(program, tmp_path, to_journal=True)
    assert [line[:3] for line in lines] == ["<6>", "<4>", "<3>", "<4>"]
    assert [json.loads(line[3:])["level"] for line in lines] == ["info", "warning", "error", "warning"]


@pytest.mark.parametrize("program", CONFIGURED)
def test_a_line_elsewhere_is_json_alone(program: str, tmp_path: Path) -> None:
    lines = logged(program, tmp_path, to_journal=False)
    assert [json.loads(line)["level"] for line in lines] == ["info", "warning", "error", "warning"]


def test_each_line_of_a_message_has_the_priority() -> None:
    assert with_priority("error", "a\nb") == "<3>a\n<3>b"
    assert with_priority("unheard of", "a") == "<6>a"


def test_why_a_program_failed_is_an_error_in_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "log").open("w") as log:
        found = os.fstat(log.fileno())
        assert failure("no", log) == "no"
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert failure("no", log) == "<3>no"


def test_a_stream_without_a_descriptor_is_not_the_journal() -> None:
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})
