"""A file that names a device or a certificate on each line, as people and spreadsheets write it.

Rules
-----
1. A first line that is the column's name does not name a device: it is skipped, with a message. A device that really
   has that name must be named in a command of its own.
2. One cell per line: with several, it would be unknown which is meant.
"""

from __future__ import annotations

import contextlib
import csv
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import typer

from provisioning.commands.service_command import fail, say
from provisioning.errors import ConfigurationError
from provisioning.program import interruption
from provisioning.program.given_file import NAMES_BYTES, contents_of, rest_of, unread

_STANDARD_INPUT: Final = Path("-")
_LONGEST: Final = 64
"""The service's limit for a name or a serial number, in characters."""
_HEADERS: Final[Mapping[str, frozenset[str]]] = {
    "device": frozenset({"name", "names", "device", "devices", "device_name"}),
    "certificate": frozenset({"serial", "serials", "serial_number", "certificate", "certificates"}),
}
"""Column names that the first line may be, in lower case, by what the other lines name."""


@contextlib.contextmanager
def before_the_loop() -> Iterator[None]:
    """Read a command's items in this block: an error ends the command, with one line.

    Not while the command's event loop runs: the input may be typed, or come through a slow pipe, and an interrupt
    does not end a wait for it in a loop. Raises `typer.Exit`.
    """
    try:
        yield
    except ConfigurationError as error:
        raise fail(str(error)) from error
    except OSError as error:
        raise fail(unread(Path(error.filename or "the input"), error)) from error
    except KeyboardInterrupt as error:
        say("fleet-provisioning: stopped, and nothing was done")
        raise typer.Exit(interruption.EXIT_CODE) from error


def input_of(path: Path, most: int) -> tuple[str, bytes]:
    """Return what a file is called, and its contents, *most* bytes; ``-`` is standard input.

    Raises `ConfigurationError` if it is longer, and `OSError`.
    """
    if path == _STANDARD_INPUT:
        name = "standard input"
        return name, rest_of(sys.stdin.buffer, most, name)
    return str(path), contents_of(path, most)


def read_lines(path: Path, what: str) -> list[str]:
    """Return the names in the lines of a file, each once; ``-`` is standard input; *what*: ``device``, ``certificate``.

    Raises `ConfigurationError` if there is none, or a line has several cells.
    """
    file, content = input_of(path, NAMES_BYTES)
    try:
        # Spreadsheets and Windows write a byte order mark.
        rows = list(csv.reader(content.decode("utf-8-sig").splitlines(), strict=True))
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is not UTF-8 text ({error}): save it as that") from error
    except csv.Error as error:
        raise ConfigurationError(f"{file} cannot be read line by line ({error}): put one {what} on each") from error
    names: list[str] = []
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row if cell.strip()]
        if len(cells) > 1:
            raise ConfigurationError(
                f"{file}:{number} has {len(cells)} cells, {', '.join(cells)[:80]}: keep one column, with a {what} on "
                "each line"
            )
        if cells and len(cells[0]) > _LONGEST:
            raise ConfigurationError(
                f"{file}:{number} begins with {cells[0][:40]!r} and has {len(cells[0])} characters: no {what} has a "
                f"name of more than {_LONGEST}"
            )
        names += cells
    names = list(dict.fromkeys(names))
    if names and names[0].lower() in _HEADERS[what]:
        say(f"fleet-provisioning: {file}: the first line, {names[0]}, is a header and no {what}")
        del names[0]
    if not names:
        raise ConfigurationError(f"{file} names no {what}: put one on each line")
    return names
