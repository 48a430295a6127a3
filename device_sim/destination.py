"""Where a report is to go: looked at before the run, which may take a day, and not when it is over.

Handles: a directory that cannot be made or written, a file whose directory is not there. What becomes of it while the
run goes on, such as a disk that fills, is told when it is written (`write`), with the file's name.
"""

from __future__ import annotations

import os
from pathlib import Path

import typer


def expect_file(option: str, path: Path | None) -> None:
    """Raise `typer.BadParameter`, which names *option*, if no file can be written at *path*; None: none is wanted."""
    if path is None:
        return
    if path.is_dir():
        raise typer.BadParameter(f"{option} {path}: it is a directory; name a file")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"{option} {path}: there is no directory {path.parent}; make it, or name another file")
    _expect_right(option, path, path if path.exists() else path.parent)


def expect_directory(option: str, path: Path | None) -> None:
    """Make the directory *path*; raise `typer.BadParameter` if it cannot be made or written. None: none is wanted."""
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"{option} {path} cannot be made: {error.strerror}; name another directory") from None
    _expect_right(option, path, path)


def _expect_right(option: str, path: Path, place: Path) -> None:
    if not os.access(place, os.W_OK):
        raise typer.BadParameter(f"{option} {path}: this user may not write {place}; name another")


def write(path: Path, text: str) -> None:
    """Write *text* to *path* in UTF-8, or nothing: half a file is none.

    Raises `OSError` that names the file, which that of a full disk does not.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        if path.is_file():
            path.unlink()
        error.filename = str(path)
        raise
