"""The file to which a child process writes: its user's only, whatever the umask.

A server's log names devices, the holders of tokens, and addresses; in a directory that the user has named (`--dir`) and
that others may enter, it stays closed.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def opened_log(path: Path) -> BinaryIO:
    """Open the log at *path* to append to it, and create it with mode 0600. Raises `OSError`."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")
