"""A clock that a test moves for whole processes: preloaded libfaketime rereads it from a file on every call.

    clock = FakeClock.new(tmp_path)
    clock.enter(monkeypatch)          # every process started from now on uses it
    clock.set("+20d")                 # all of them jump at once

Monotonic clocks are unaffected: only the wall clock can be set. The test's own process keeps the true time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

_LIBRARY = "faketime/libfaketimeMT.so.1"
_FILE = "FAKETIME_TIMESTAMP_FILE"


def clock_of(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what has to be in a process's *environment* when it starts, for a clock that is moved; else nothing.

    Which file moves it is looked up on every call: it may change.
    """
    if not environment.get("LD_PRELOAD", "").endswith(_LIBRARY):
        return {}
    return {
        name: value
        for name, value in environment.items()
        if name == "LD_PRELOAD" or (name.startswith("FAKETIME_") and name != _FILE)
    }


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

    @property
    def environment(self) -> dict[str, str]:
        """What a process with this clock needs in its environment."""
        (library,) = Path("/usr/lib").glob(f"*/{_LIBRARY}")
        return {
            "LD_PRELOAD": str(library),
            _FILE: str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            # Otherwise every timed wait, as in Python's threads, would expire at once, again and again.
            "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            # Otherwise a process that is killed leaves a file and a semaphore in the machine's shared memory.
            "FAKETIME_DISABLE_SHM": "1",
        }

    def enter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give this clock to every process started from now on."""
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def set(self, ahead: timedelta) -> None:
        """Set it *ahead* of the true time, or behind."""
        draft = self.file.with_suffix(".new")
        draft.write_text(f"{ahead.total_seconds():+.0f}\n")
        draft.rename(self.file)
        self.ahead = ahead

    def now(self) -> datetime:
        """Return the time of the processes."""
        return datetime.now(UTC) + self.ahead
