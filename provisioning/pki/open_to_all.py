"""Files that everybody on the machine may read, which get a warning, or write, which are refused.

A private file that everybody may read is used all the same: docs/decisions/0182-world-readable-private-keys.md says
why. Whoever may write to a file of anchors, of settings or of permissions decides what a program trusts, and need not
wait for its next start where changed files are read again.

Rules
-----
1. Only what everybody may do counts: a group for keys is how Debian shares them (``ssl-cert``), and a volume with
   ``fsGroup`` opens each file to a group.
2. Directories above a file are not considered.
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


def written_by_all(path: Path) -> str | None:
    """Return that everybody may write to the file or directory at *path*, with the remedy; None if not, or unknown."""
    try:
        found = path.stat()
    except OSError:
        return None
    kind = found.st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)) or not kind & stat.S_IWOTH:
        return None
    return (
        f"{path} has mode {stat.S_IMODE(kind):04o}, everybody on this machine may write to it: look what is in it, and "
        f"then chmod o-w {quoted(path)}"
    )
