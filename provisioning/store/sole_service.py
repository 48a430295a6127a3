"""An SQLite store has one service, whichever directory that is of, and by whichever name it opens the store.

The lock of a directory (`provisioning.directory.in_charge`) keeps a second service of that directory out. A copy of the
directory with the same ``database_url``, or a hard link to the store, has another lock: two services issued from one
store, each learned late of what the other had revoked, and with two names each had a log of its own, which damages it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import URL

from provisioning.errors import ConfigurationError
from provisioning.program.sqlite_lock import hold


@contextlib.contextmanager
def alone_on(store: URL) -> Iterator[None]:
    """Keep any other service from *store*, if it is on SQLite, while the block runs, in which it is opened and closed.

    Raises `ConfigurationError` if another uses it.
    """
    if store.get_backend_name() != "sqlite" or not store.database:
        yield
        return
    held = _held(Path(store.database))
    try:
        yield
    finally:
        if held is not None:
            os.close(held)


def _held(path: Path) -> int | None:
    try:
        return hold(path)
    except BlockingIOError:
        raise ConfigurationError(
            f"the store {path} is used by another service, of another directory: on SQLite one service runs at a "
            "time; stop that first, or give this one a store of its own (database_url)"
        ) from None
    except OSError:  # It is missing, or may not be written: that is told when it is opened. Or there are no locks here.
        return None
