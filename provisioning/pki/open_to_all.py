"""A private file that everybody on the machine may read: told to whoever uses it, and used all the same.

Why it is no refusal: docs/decisions/0182-a-key-that-everybody-may-read.md. A file that its group may read is not told
of: a group for keys is how Debian hands them out (``ssl-cert``).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from provisioning.pki.own_directory import quoted, user_argument

_ROOT: Final = 0


def told_of(path: Path) -> str | None:
    """Return that everybody may read the file at *path*, and the remedy; None if not, or nobody can look."""
    try:
        found = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(found.st_mode) or not found.st_mode & stat.S_IROTH:
        return None
    us = os.geteuid()
    remedy = f"chmod 600 {quoted(path)}"
    if us not in {found.st_uid, _ROOT}:  # Who reads it as one of everybody could not any more.
        remedy = f"chown {user_argument(us)} {quoted(path)} && {remedy}"
    return f"{path} has mode {stat.S_IMODE(found.st_mode):04o}, everybody on this machine may read it: {remedy}"
