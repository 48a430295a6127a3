"""A clock that a test moves under whole processes: libfaketime, preloaded, reads it from a file at every question.

    clock = FakeClock.new(tmp_path)
    clock.enter(monkeypatch)          # every process that is started from now on has it
    clock.set("+20d")                 # all of them are there at once

Monotonic clocks go on as they are: only the wall clock can be set. The test's own process keeps the true time.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

_LIBRARY = "faketime/libfaketimeMT.so.1"


@dataclass
class FakeClock:
    """How far the processes' clock is ahead of the true one."""

    file: Path
    ahead: timedelta = timedelta()

    @classmethod
    def new(cls, directory: Path) -> FakeClock:
        clock = cls(directory / "clock")
        clock.set(timedelta())
        return clock

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give this clock to every process that is started from now on."""
        (library,) = Path("/usr/lib").glob(f"*/{_LIBRARY}")
        for name, value in (
            ("LD_PRELOAD", library),
            ("FAKETIME_TIMESTAMP_FILE", self.file),
            ("FAKETIME_NO_CACHE", 1),
            ("FAKETIME_DONT_FAKE_MONOTONIC", 1),
            # Else each wait with an end, as Python's threads wait for one another, is over at once, for ever anew.
            ("FAKETIME_FORCE_MONOTONIC_FIX", 0),
        ):
            monkeypatch.setenv(name, str(value))

    def set(self, ahead: timedelta) -> None:
        """Set it so far ahead of the true time, or behind."""
        draft = self.file.with_suffix(".new")
        draft.write_text(f"{ahead.total_seconds():+.0f}\n")
        draft.rename(self.file)
        self.ahead = ahead

    def now(self) -> datetime:
        """Return the time of the processes."""
        return datetime.now(UTC) + self.ahead
