"""Runs a command line as a program: its name in usage lines, and an orderly end if its output cannot be written.

Rules
-----
1. A reader that closes the output early, such as head, is no error, and causes no message.
2. A full disk is one line on standard error, also if only the last flush finds it.
3. ``python -m broker`` is ``fleet-broker``, in its messages too: the commands that they suggest can be typed.
4. What a shell's completion shows is plain text. Typer renders it with rich if that is installed: it would be imported
   at each Tab, take ``[…]`` for markup, and wrap what is long, of which fish offers the second line.

Does not handle: errors of commands, which report them themselves.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Any, Final, NoReturn

import typer

_UNWRITABLE: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def run(app: typer.Typer, program: str) -> NoReturn:
    """Run the command in the arguments, under the name *program*, and exit."""
    if f"_{program.replace('-', '_').upper()}_COMPLETE" in os.environ:
        modules: dict[str, Any] = sys.modules
        modules["rich"] = None  # As if it were not installed: rule 4.
    try:
        try:
            app(prog_name=program)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        _let_go_of_output()
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        typer.echo(f"{program}: the output cannot be written: {error.strerror}", err=True)
        _let_go_of_output()
    raise AssertionError("typer exits")


def _let_go_of_output() -> NoReturn:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
