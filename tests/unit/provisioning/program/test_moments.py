from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta, timezone

import pytest

from provisioning.program.moments import rfc3339, rfc3339_milliseconds, shown_minute, shown_time


@pytest.mark.parametrize(
    ("write", "written"),
    [
        (rfc3339, "2026-12-31T22:30:05Z"),
        (rfc3339_milliseconds, "2026-12-31T22:30:05.678Z"),
        (shown_time, "2026-12-31 22:30:05 UTC"),
        (shown_minute, "2026-12-31 22:30 UTC"),
    ],
)
def test_a_moment_with_another_offset_is_written_in_utc(write: Callable[[datetime], str], written: str) -> None:
    assert write(datetime(2027, 1, 1, 0, 30, 5, 678_901, timezone(timedelta(hours=2)))) == written
