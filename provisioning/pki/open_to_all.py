"""Warns of a private file that everybody on the machine may read; the file is used all the same.

Why it is not refused: docs/decisions/0182-a-key-that-everybody-may-read.md. A file that its group may read gets no
warning: a group for keys is how Debian shares them (``ssl-cert``).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from provisioning.pki.own_directory import quoted, user_argument

_ROOT: Final = 0


def told_of(path: Path) -> str | None:
    """Return the warning that everybody may read the file at *path*, with the remedy; None if not, or unknown."""
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & stat.S_IROTH:
        return None
    us = os.geteuid()
    remedy = f"chmod 600 {quoted(path)}"
    if us not in {found.st_uid, _ROOT}:  # We read it as others: with the remedy applied, we no longer could.
        remedy = f"chown {user_argument(us)} {quoted(path)} && {remedy}"
    return f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, everybody on this machine may read it: {remedy}"
