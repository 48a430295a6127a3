"""Reports a read-only file system to the person who starts a service, and what to do.

The kernel only says that a path cannot be written, or SQLite that it cannot open a file, and that looks like a wrong
owner. Disks become read-only after an error, and systemd (``ProtectSystem=strict``) makes everything read-only for a
service except what its unit names.
"""

from __future__ import annotations

import os
from pathlib import Path


def told(place: Path) -> str | None:
    """Return that *place* is on a read-only file system, and the remedy; None if not, or if it is not there."""
    try:
        if not os.statvfs(place).f_flag & os.ST_RDONLY:
            return None
    except OSError:
        return None
    return (
        f"{place} is on a file system that is read-only here: mount it writable, or if only this service finds it "
        "read-only, name it in the systemd unit (ReadWritePaths=)"
    )
