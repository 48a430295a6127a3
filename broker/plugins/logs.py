"""Log lines from plugins, and about them, in the broker's log.

Rules
-----
1. amqtt's plugins log through `logging`; each record becomes an event of ours with the logger's name. As there, a
   record that cannot be put into words is no error of the one that logs it.
2. Events that clients or plugins can cause endlessly are logged `_MOST` times a minute per plugin and code; then how
   many were left out. All are counted (`Metrics.plugin_outcomes`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import structlog

from broker.metrics import Metrics

log = structlog.get_logger("broker")

LOGGER = "fleetgate.plugins"
"""The logger below which each plugin has its own."""
_SHOWN = 200
_MOST = 10
_MINUTE = 60.0


class _Forward(logging.Handler):
    """Writes records of `logging` to the broker's log."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one."""
        raised = {"exc_info": record.exc_info} if record.exc_info is not None and record.exc_info[0] else {}
        try:
            text = record.getMessage()
        except Exception as error:  # noqa: BLE001 - the format, its arguments and their words are the plugin's
            format_text = record.msg[:_SHOWN] if isinstance(record.msg, str) else type(record.msg).__name__
            text = f"{format_text!r}, whose arguments do not fit ({type(error).__name__})"
        log.log(record.levelno, "plugin says", logger=record.name, text=text, **raised)


def forward_logs(level: str) -> None:
    """Forward log records of plugins and amqtt, from *level* on, to the broker's log."""
    for name in (LOGGER, "amqtt"):
        logger = logging.getLogger(name)
        logger.setLevel(level.upper())
        logger.propagate = False
        if not any(isinstance(each, _Forward) for each in logger.handlers):
            logger.addHandler(_Forward())


def resume(call: Callable[[], None]) -> None:
    """Resume what was waiting; a bug met by one of them must not affect the others."""
    try:
        call()
    except MemoryError:  # Not the fault of what was waiting: `provisioning.program.out_of_memory`.
        raise
    except Exception:
        log.exception("packet failed after waiting for plugins", code="INTERNAL_ERROR")


def _words(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as unsaid:  # noqa: BLE001 - the plugin has written this exception, too
        return f"its own text raises {type(unsaid).__name__}"


class Outcomes:
    """Counts and reports what came of asking plugins, and of telling them: refusals and failures."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._told: dict[tuple[str, str], tuple[float, int]] = {}
        """By plugin and code: the beginning of the count, and the number since."""

    def tell(self, code: str, plugin: str, text: str, error: BaseException | None = None, **facts: object) -> None:
        """Count *code*, and log it with *text* and *facts* unless the limit is reached."""
        self._metrics.plugin_outcomes[code] += 1
        now = self._clock()
        since, times = self._told.get((plugin, code), (now, 0))
        untold = 0
        if now - since >= _MINUTE:
            untold, since, times = max(0, times - _MOST), now, 0
        self._told[plugin, code] = since, times + 1
        if times < _MOST:
            more: dict[str, object] = {"not_told": untold} if untold else {}
            if error is not None:
                more |= {"error": f"{type(error).__name__}: {_words(error)}", "exc_info": error}
            log.warning(text, code=code, plugin=plugin, **facts, **more)
