"""Where a report will be written: checked before the run, which may take a day, and not only at its end.

Handles: a directory that cannot be created or written, a file whose directory is missing. Later problems, such as a
full disk, are reported when the report is written (`write`), with the file's name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import typer

from provisioning.program.unwritten import unwritten


def expect_file(option: str, path: Path | None) -> None:
    """Raise `typer.BadParameter`, naming *option*, if no file can be written at *path*; None: no file is wanted."""
    if path is None:
        return
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # Nothing else may be asked of it.
        raise typer.BadParameter(f"{option} {unwritten(path, error)}") from None
    if path.is_dir():
        raise typer.BadParameter(f"{option} {path}: it is a directory; name a file")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"{option} {path}: there is no directory {path.parent}; make it, or name another file")
    _expect_right(option, path, path if path.exists() else path.parent)


def expect_reports(json: Path | None, junit: Path | None) -> None:
    """Raise `typer.BadParameter` if no file can be written at *json* or *junit*, or if both are the same."""
    expect_file("--json", json)
    expect_file("--junit", junit)
    if json is None or junit is None or json.resolve() != junit.resolve():
        return
    if junit.is_file() or not junit.exists():  # Both may go to /dev/null.
        raise typer.BadParameter(f"--junit {junit} is the file of --json: name another")


def expect_directory(option: str, path: Path | None, *, mode: int = 0o777) -> None:
    """Create the directory *path* with *mode*; raise `typer.BadParameter` if it cannot be made or written.

    None: it is not wanted.
    """
    if path is None:
        return
    try:
        path.mkdir(mode, parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{option} {path} cannot be made: {error.strerror}; name another directory") from None
    _expect_right(option, path, path)


def _expect_right(option: str, path: Path, place: Path) -> None:
    right = os.W_OK | (os.X_OK if place.is_dir() else 0)
    if not os.access(place, right, effective_ids=True):
        raise typer.BadParameter(f"{option} {path}: this user may not write {place}; name another")


def clear(path: Path | None) -> None:
    """Remove an older report at *path*: if the run that has begun comes to no end, it would be taken for this run's.

    A link may lead to the output of this very process, and is left.
    """
    if path is None or path.is_symlink() or not path.is_file():
        return
    try:
        path.unlink()
    except PermissionError:  # The directory's. The file may be written.
        path.write_bytes(b"")


def write(path: Path, text: str) -> None:
    """Write *text* to *path* in UTF-8, completely or not at all.

    Raises `OSError` naming the file, which the error of a full disk does not. What was there stays if it cannot be
    opened for writing.
    """
    file = path.open("w", encoding="utf-8")
    try:
        with file:
            file.write(text)
    except OSError as error:
        if path.is_file():
            path.unlink()
        error.filename = str(path)
        raise


def write_each(contents: Mapping[Path, str]) -> list[OSError]:
    """Write each of *contents* to its path, as `write`; return why some are not there: one keeps no other back."""
    errors = []
    for path, text in contents.items():
        try:
            write(path, text)
        except OSError as error:
            errors.append(error)
    return errors
