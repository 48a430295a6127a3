"""A process that stops in the middle of writing to the store, and reports the outcome when it continues.

python -m tests.support.stopped_writer URL idle idle-on-loop sending
→ stopped                       after which it stops, by SIGSTOP, with a row of the table `notes` written
→ UNAVAILABLE                   or "written"
→ again                         it has written another; and so on for each
"""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Iterator

import structlog
from sqlalchemy import text
from sqlalchemy.engine import Connection

from provisioning.errors import Refused
from provisioning.store.database import Database
from provisioning.store.postgresql_group import driver_of

_ROWS = 2000


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def _stop() -> None:
    _say("stopped")
    # To this thread: through another, which the kernel would have to wake first, this one would run on for a moment.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def _rows() -> Iterator[tuple[str]]:
    """Yield rows that need several messages of the driver, and stop between two of them."""
    for number in range(_ROWS):
        if number == _ROWS // 2:
            _stop()
        yield (f"{number:0100}",)


def _note(connection: Connection, word: str) -> None:
    connection.execute(text("INSERT INTO notes VALUES (:word)"), {"word": word})


async def _write(database: Database, how: str) -> None:
    def work(connection: Connection) -> None:
        _note(connection, "before")
        if how == "sending":
            driver_of(connection).cursor().executemany("INSERT INTO notes VALUES (%s)", _rows())
        else:
            _stop()
        _note(connection, "after")

    try:
        await database.write(work, short=how == "idle-on-loop")
        _say("written")
    except Refused as refusal:
        _say(refusal.code.value)
    await database.write(lambda connection: _note(connection, "again"))
    _say("again")


async def _main(url: str, *hows: str) -> None:
    database = Database(url)
    for how in hows:
        await _write(database, how)
    await database.close()


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    asyncio.run(_main(*sys.argv[1:]))
