"""Another user than root, whom modes keep out of nothing."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def as_somebody_else() -> Iterator[None]:
    """Be a user whom a mode keeps out: root is kept out of nothing."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.contextmanager
def place_for_all() -> Iterator[Path]:
    """Make a directory that such a user may enter, as he may not a test's."""
    with tempfile.TemporaryDirectory(prefix="fleetgate-for-all-", dir="/tmp") as name:
        (place := Path(name)).chmod(0o755)
        yield place
