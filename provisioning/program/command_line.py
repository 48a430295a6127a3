"""A command line as a program: its name in its usage lines, and an orderly end where its output cannot be written.

Rules
-----
1. Whoever reads the output and has had enough, as head has, is no error, and is told nothing.
2. A disk that is full is one line on standard error, also where it is found full by the last flush.
3. ``python -m broker`` is ``fleet-broker``, in its own words too: what it says to type can be typed.

Does not handle: errors of commands, which say themselves what is wrong.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Final, NoReturn

import typer

from provisioning.program.named_command import named_in

_UNWRITABLE: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def run(app: typer.Typer, program: str) -> NoReturn:
    """Run the command that the arguments name as *program*, and exit."""
    try:
        try:
            named_in(app, sys.argv[1:])(prog_name=program)
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
