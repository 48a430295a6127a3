"""The broker's directory, as `provisioning.pki.own_directory` wants it, and what to do where a mount opens it.

A volume of Kubernetes with ``fsGroup`` is opened to that group, with all that is in it, each time it is mounted:
nothing done to its modes lasts (docs/decisions/0166-a-volume-that-is-opened-to-a-group.md).
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
    """Something else is where the directory is to be; the text names it and the setting."""


def enter(config: BrokerConfig) -> None:
    """Make the directory if it is not there; raise `ForeignDirectory` if others may write to it, or have.

    Raises `NoDirectory` where a file is in its place, or in that of one above it.
    """
    place = existing(config.state_dir)
    if not place.is_dir():
        raise NoDirectory(f"state_dir: {place} is no directory; name another")
    with _advised():
        own_directory.enter(config.state_dir, os.geteuid(), of_group=config.unsafe_group_writable_state_dir)


def check(config: BrokerConfig) -> None:
    """Raise `ForeignDirectory` as `enter` does, and make nothing; OSError where it cannot be read."""
    with _advised():
        own_directory.check_own(config.state_dir, os.geteuid(), of_group=config.unsafe_group_writable_state_dir)


def existing(directory: Path) -> Path:
    """Return *directory*, or what of the path to it is there."""
    while not directory.exists() and directory != directory.parent:
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
