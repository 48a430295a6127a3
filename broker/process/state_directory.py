"""The broker's state directory, as `provisioning.pki.own_directory` requires it, and the remedy where a mount opens it.

A Kubernetes volume with ``fsGroup`` is made accessible to that group, with everything in it, each time it is mounted:
changed modes do not last (docs/decisions/0166-group-writable-volumes.md).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from broker.settings.config import BrokerConfig
from provisioning.pki import own_directory
from provisioning.pki.own_directory import ForeignDirectory


class NoDirectory(Exception):
    """The directory's path is taken by something else; the text names it and the setting."""


def enter(config: BrokerConfig) -> None:
    """Create the directory if it is missing; raise `ForeignDirectory` if others may write to it, or have.

    Raises `NoDirectory` if a file is in its place, or in that of a parent.
    """
    place = existing(config.state_dir)
    if not os.path.isdir(place):  # noqa: PTH112 - Path.is_dir raises what a folder that is closed to us raises.
        raise NoDirectory(f"state_dir: {place} is not a directory; name another")
    with _advised():
        own_directory.enter(config.state_dir, os.geteuid(), of_group=config.unsafe_group_writable_state_dir)


def check(config: BrokerConfig) -> None:
    """Raise `ForeignDirectory` as `enter` does, but create nothing; OSError if it cannot be read."""
    with _advised():
        own_directory.check_own(config.state_dir, os.geteuid(), of_group=config.unsafe_group_writable_state_dir)


def existing(directory: Path) -> Path:
    """Return *directory*, or its deepest parent that exists."""
    while not os.path.exists(directory) and directory != directory.parent:  # noqa: PTH110 - as above
        directory = directory.parent
    return directory


@contextlib.contextmanager
def _advised() -> Iterator[None]:
    try:
        yield
    except ForeignDirectory as error:
        if not error.group_alone:
            raise
        raise ForeignDirectory(
            f"{error}. If a mount opens it to a group each time (fsGroup): fsGroupChangePolicy: OnRootMismatch and a "
            "directory below the volume's own, or unsafe_group_writable_state_dir"
        ) from error
