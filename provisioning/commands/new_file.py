"""A file that a command creates: its place is checked before the command does the work whose result goes there."""

from __future__ import annotations

import os
from pathlib import Path

from provisioning.errors import ConfigurationError
from provisioning.program.durable_names import create


def expect_new(path: Path) -> None:
    """Raise `ConfigurationError` if a new file cannot be created at *path*: before its contents are made."""
    try:
        path.stat()  # `Path.exists` says no of any error, from Python 3.14 on.
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # For example a name that is too long.
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
    else:
        raise ConfigurationError(f"{path} exists already: choose another --output, it is never overwritten")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{path} cannot be written: make the directory {path.parent} or choose another")
    if not os.access(path.parent, os.W_OK):
        raise ConfigurationError(f"{path} cannot be written: this user may not write in {path.parent}")


def write_new(path: Path, content: bytes) -> None:
    """Write a new file, and return when it is on disk; raise `ConfigurationError` if it exists or cannot be written."""
    try:
        create(path, content)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}") from error
