"""The file to which a child process writes: its user's only, whatever the umask.

A server's log names devices, the holders of tokens, and addresses; in a directory that the user has named (`--dir`) and
that others may enter, it stays closed.

What a service tells a caller is no more than that it is unavailable: why is in its log alone. Where the service is our
own, in a directory that is gone afterwards, nobody else could say it (`reasons_from`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from provisioning.client.est import EnrolmentUnavailable
from provisioning.client.operator import ServiceUnavailable

_LAST = 256 * 1024


def opened_log(path: Path) -> BinaryIO:
    """Open the log at *path* to append to it, and create it with mode 0600. Raises `OSError`."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")


@contextmanager
def reasons_from(log: Path) -> Iterator[None]:
    """Note on errors of a service that could not be used what its *log* said last was wrong with it."""
    try:
        yield
    except Exception as error:
        # From now on in its log are its end, and that of its callers.
        if (found := list(_unavailable(error))) and (reason := _last_warning(log)):
            for each in found:
                each.add_note(f"the service's log says: {reason}")
        raise


def _unavailable(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _unavailable(part)
    elif isinstance(error, EnrolmentUnavailable | ServiceUnavailable):
        yield error


def _last_warning(log: Path) -> str | None:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LAST))
            lines = file.read(_LAST).splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            told = json.loads(line)
        except ValueError:  # A traceback, or the end of a line.
            continue
        if isinstance(told, dict) and told.get("level") in {"warning", "error", "critical"}:
            return ": ".join(str(told[name]) for name in ("code", "event", "detail") if told.get(name))
    return None
