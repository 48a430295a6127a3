"""An authority as ``init`` leaves it, created once per test worker and copied: creating costs more than many a test.

    shutil.copytree(prepared(), …)                        # on SQLite: the store is a file in it
    directory, database = prepared_on(server)             # on PostgreSQL: the store is a copy of *database*

No service is started on the original. All copies have the same keys and were created with the default settings.
"""

from __future__ import annotations

import atexit
import functools
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.support import programs
from tests.support.postgresql import PostgresqlServer

PASSPHRASE = "correct horse battery staple"
_SECONDS = 60


def settings_environment(settings: Mapping[str, object]) -> dict[str, str]:
    """Return the environment of a ``fleet-provisioning`` process with *settings*."""
    return os.environ | {
        "PYTHONPATH": str(programs.REPOSITORY),
        "FLEET_PROVISIONING_PASSPHRASE": PASSPHRASE,
        **{f"FLEET_PROVISIONING_{name.upper()}": str(value) for name, value in settings.items()},
    }


@functools.cache
def prepared() -> Path:
    """Return the directory of an authority that includes its store."""
    return _found({})


@functools.cache
def prepared_on(server: PostgresqlServer) -> tuple[Path, str]:
    """Return the directory of an authority, and the name of its database on *server*."""
    url = server.new_database(template="template0")
    return _found({"database_url": url}), url.rpartition("/")[2]


def _found(settings: Mapping[str, object]) -> Path:
    place = tempfile.TemporaryDirectory(prefix="fleet-")
    atexit.register(place.cleanup)
    directory = Path(place.name) / "fleet"
    arguments = ["init", "--dir", str(directory)]
    done = programs.run("provisioning", arguments, settings_environment(settings), timeout=_SECONDS)
    assert done.returncode == 0, done.stderr
    return directory
