"""Runs a command line as a program: its name in usage lines, and an orderly end if its output cannot be written.

Rules
-----
1. A reader that closes the output early, such as head, is no error, and causes no message.
2. A full disk is one line on standard error, also if only the last flush finds it.
3. ``python -m broker`` is ``fleet-broker``, in its messages too: the commands that they suggest can be typed.
4. What a shell's completion shows is plain text. Typer renders it with rich if that is installed: it would be imported
   at each Tab, take ``[…]`` for markup, and wrap what is long, of which fish offers the second line.
5. A character that the terminal's encoding lacks is shown escaped, and ends no command: names come from certificates.

Does not handle: errors of commands, which report them themselves.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any, Final, NoReturn

import typer
from typer import _completion_shared

from provisioning.program.bash_script import BASH_SCRIPT
from provisioning.program.given_up_output import give_up_output

_UNWRITABLE: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def run(app: typer.Typer, program: str) -> NoReturn:
    """Run the command in the arguments, under the name *program*, and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.encoding.casefold() != "utf-8":
        sys.stdout.reconfigure(errors="backslashreplace")  # As standard error has: rule 5.
    _completion_shared._completion_scripts["bash"] = BASH_SCRIPT  # noqa: SLF001 - Typer takes none any other way.
    instruction = os.environ.get(f"_{program.replace('-', '_').upper()}_COMPLETE")
    try:
        try:
            if instruction is not None:
                _complete(app, program, instruction)
            app(prog_name=program)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        give_up_output()
        sys.exit(1)
    except OSError as error:
        if error.errno not in _UNWRITABLE or error.filename is not None:
            raise
        typer.echo(f"{program}: the output cannot be written: {error.strerror}", err=True)
        give_up_output()
        sys.exit(1)
    raise AssertionError("typer exits")


def _complete(app: typer.Typer, program: str, instruction: str) -> None:
    """Answer a shell's question and exit, unless Typer has to answer it."""
    modules: dict[str, Any] = sys.modules
    modules["rich"] = None  # As if it were not installed: rule 4.
    from provisioning.program import shell_completion  # Late: a command needs nothing of it.

    if (answer := shell_completion.answer(app, program, instruction)) is not None:
        text, code = answer
        sys.stdout.write(f"{text}\n" if text else "")
        sys.exit(code)
