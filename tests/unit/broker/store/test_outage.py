"""What the log says while the store fails: enough to know, and not so much that the log grows with it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from structlog.testing import capture_logs

from broker.store.outage import Outage

FULL = sqlite3.OperationalError("database or disk is full")


def told(outage: Outage, *moments: float, error: BaseException = FULL) -> list[tuple[float, Any]]:
    """Return at which of *moments*, where a write fails, there is a line, and how many failures it counts."""
    lines = []
    for now in moments:
        with capture_logs() as said:
            outage.failed(error, now)
        lines += [(now, each["times"]) for each in said if each["code"] == "STORE_FAILED"]
    return lines


def test_the_first_failure_is_said_at_once_and_then_each_minute_how_many_there_were() -> None:
    outage = Outage(Path("broker.db"))
    assert told(outage, *range(1000, 1190)) == [(1000, 1), (1060, 60), (1120, 60), (1180, 60)]
    with capture_logs() as said:
        outage.over(1195.0)
        outage.over(1200.0)
    assert said == [
        {
            "event": "the store can be written again",
            "log_level": "info",
            "code": "STORE_WRITTEN",
            "path": "broker.db",
            "attempts": 190,
            "seconds": 195,
        }
    ]
    assert told(outage, 1201, 1202) == [(1201, 1)], "the next outage is said at once"


def test_a_line_has_the_reason_and_a_bug_its_traceback() -> None:
    bug = TypeError("bug")
    for error, traced in ((FULL, None), (bug, bug)):
        with capture_logs() as said:
            Outage(Path("broker.db")).failed(error, 0.0)
        (line,) = said
        assert (line["log_level"], line["detail"], line["path"], line["exc_info"]) == (
            *("error", str(error), "broker.db"),
            traced,
        )


def test_that_nothing_has_failed_is_not_said() -> None:
    with capture_logs() as said:
        Outage(Path("broker.db")).over(1.0)
    assert said == []
