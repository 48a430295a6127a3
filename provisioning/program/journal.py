"""Priorities of log lines in systemd's journal, so that ``journalctl -p warning`` shows the warnings.

What a service writes to standard error is of one priority in the journal unless a line begins with its own, ``<4>`` for
a warning (sd-daemon(3)); the journal takes that away. Anybody else who reads standard error would see it, so lines have
it only if standard error is the journal's stream, which JOURNAL_STREAM identifies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO

Renderer = Callable[[Any, str, Any], str | bytes]

_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_ERROR: Final = "<3>"


def is_journal(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether *stream* leads to the journal."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def with_priority(level: str, line: str) -> str:
    """Return *line*, of that *level*, as the journal wants it: each of its lines has the priority."""
    prefix = f"<{_PRIORITIES.get(level, _PRIORITIES['info'])}>"
    return prefix + line.replace("\n", f"\n{prefix}")


def prioritised(renderer: Renderer) -> Renderer:
    """Return a *renderer* for structlog whose lines have the priority of their level."""

    def render(logger: Any, method: str, line: Any) -> str:
        level = str(line.get("level", method))
        return with_priority(level, str(renderer(logger, method, line)))

    return render


def failure(line: str, stream: TextIO) -> str:
    """Return *line*, which says why a program failed, as *stream* wants it."""
    return f"{_ERROR}{line}" if is_journal(stream) else line
