"""Logs: structured lines on stderr, so that stdout stays the ready line's and the commands'.

JSON where nobody watches, coloured text at a terminal. Nothing secret reaches them: what holds a secret has a
representation without it.
"""

from __future__ import annotations

import logging
import sys

import structlog


def configure_logging() -> None:
    """Send this process's logs to stderr."""
    watched = sys.stderr.isatty()
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if watched else [structlog.processors.format_exc_info]),
            structlog.dev.ConsoleRenderer()
            if watched
            else structlog.processors.JSONRenderer(default=str, ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # What libraries say; the web server's own chatter about each start and stop is ours to report.
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
