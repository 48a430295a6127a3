"""One ceremony at a time works on a directory: what it does with keys and files is between its transactions.

Two at once would be safe in the store, and not beside it: who fails deletes the key that it has made, which the other
may have found meanwhile, and use for the root that it records; and the bundle would be of whoever writes it last, not
of who has looked last. The audit log's key is locked, by the kernel: it is in every directory, nobody replaces it, and
whatever ends the process releases it. The directory itself is locked by `provisioning.directory.files` while files
change.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from provisioning.directory.files import AuthorityFiles
from provisioning.errors import ConfigurationError
from provisioning.pki.own_directory import quoted


@contextlib.contextmanager
def ceremony_on(directory: Path) -> Iterator[None]:
    """Keep other ceremonies from *directory* while the block runs; raise `ConfigurationError` while another is held."""
    key = AuthorityFiles(directory).audit_key
    held = os.open(key, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # Some network file systems have no locks.
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"another ceremony is held on {directory} at this moment: wait for its end; "
                    f"fuser -v {quoted(key)} names its process"
                ) from None
        yield
    finally:
        os.close(held)


def is_held_on(directory: Path) -> bool:
    """Whether a ceremony is held on *directory* at this moment. Raises OSError."""
    looked = os.open(AuthorityFiles(directory).audit_key, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # Some network file systems have no locks.
            try:
                fcntl.flock(looked, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False
    finally:
        os.close(looked)
