"""Logs: structured lines on stderr; stdout is for the ready line and for commands' results.

Text at a terminal, coloured unless NO_COLOR is set (no-color.org), otherwise JSON, in the journal with its priority
(`provisioning.program.journal`). No secret reaches them: objects with a secret have a representation without it.

A line that cannot be written, because the disk is full or the reader is gone or hangs, is lost, without other effects
(`provisioning.program.log_stream`): what is logged has been done and committed, and its caller gets the
answer. What must not be done without a record has one in the audit log (`provisioning.store.audit`).
"""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from typing import Final, TextIO, cast

import structlog
from structlog.typing import EventDict

from provisioning.program.flat_json import FlatJson
from provisioning.program.journal import Renderer, is_journal, prioritised, with_priority
from provisioning.program.log_stream import LossyStream
from provisioning.program.moments import rfc3339_exactly
from provisioning.program.printable import printable

_JSON: Final = FlatJson(ascii_only=False, sort_keys=False)


def _as_json(line: EventDict, **_of_structlog: object) -> str:
    return _JSON.encode(line)


def fit_for_terminal(_logger: object, _method: str, line: EventDict) -> EventDict:
    """Escape control characters for a terminal: clients choose topics and names, which may contain escape sequences."""
    for name, value in line.items():
        if isinstance(value, str):
            line[name] = printable(value)
    return line


def stamp(_logger: object, _method: str, line: EventDict) -> EventDict:
    """Add the time, behind everything else; a line that was held back has one already."""
    line["timestamp"] = line.pop("timestamp", None) or time_now()
    return line


def time_now() -> str:
    """Return the time as a line has it."""
    return rfc3339_exactly(datetime.now(UTC))


def _with_written_times(_logger: object, _method: str, line: EventDict) -> EventDict:
    """Write each time like the line's own: a terminal would show a `datetime` as Python's ``repr``."""
    for name, value in line.items():
        if type(value) is datetime:
            line[name] = rfc3339_exactly(value)
    return line


class _Lines(logging.Formatter):
    """Formats libraries' log records like the service's own lines: readers expect JSON."""

    def __init__(self, also: EventDict) -> None:
        """*also* is added to every line."""
        super().__init__()
        self._also = also
        self._for_journal = is_journal(sys.stderr)

    def format(self, record: logging.LogRecord) -> str:
        """Return a line."""
        at = rfc3339_exactly(datetime.fromtimestamp(record.created, UTC))
        line = {"event": record.getMessage(), "logger": record.name, **self._also}
        line |= {"level": record.levelname.lower(), "timestamp": at}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        text = _as_json(line)
        return with_priority(line["level"], text) if self._for_journal else text


def renderer_of(as_json: Renderer) -> Renderer:
    """Return what makes lines for standard error: for people at a terminal, otherwise *as_json*, with its priority."""
    if sys.stderr.isatty():
        return structlog.dev.ConsoleRenderer(colors=not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb")
    return prioritised(as_json) if is_journal(sys.stderr) else as_json


def configure_logging(worker: int | None = None, *, least: str = "info") -> None:
    """Send this process's logs to stderr, of level *least* (debug, info, warning, error) and above.

    *worker* is its number among several, and is on each of its lines.
    """
    watched = sys.stderr.isatty()
    lines = cast("TextIO", LossyStream(sys.stderr))

    def say_who(_logger: object, _method: str, line: EventDict) -> EventDict:
        line["worker"] = worker
        return line

    structlog.configure(
        processors=[
            *([] if worker is None else [say_who]),
            structlog.processors.add_log_level,
            stamp,
            _with_written_times,
            fit_for_terminal if watched else structlog.processors.format_exc_info,
            renderer_of(structlog.processors.JSONRenderer(_as_json)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[least.upper()]),
        logger_factory=structlog.WriteLoggerFactory(lines),
        cache_logger_on_first_use=True,
    )
    heed_libraries(lines, {} if worker is None else {"worker": worker}, watched=watched)


def heed_libraries(lines: TextIO, also: EventDict, *, watched: bool) -> None:
    """Write libraries' warnings among our own *lines*, with *also* on each; *watched*: at a terminal.

    The web server's messages about each start and stop are left out: we report those.
    """
    said = logging.StreamHandler(lines)
    said.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s") if watched else _Lines(also))
    logging.basicConfig(handlers=[said], level=logging.WARNING, force=bool(also))
