"""The line on standard error with which a command of ``fleet-broker`` says what is wrong."""

from __future__ import annotations

import sys
from typing import Final

import typer

from provisioning.program.hung_line import hung
from provisioning.program.printable import LAID_OUT, printable

USAGE: Final = 2
"""The exit code for wrong usage, or settings that cannot be used; 1 is for what was refused, or has failed."""


def say_wrong(text: str) -> None:
    """Write *text*, which may quote files and answers of others, as the program's own line."""
    typer.echo(hung(f"fleet-broker: {printable(text, also=LAID_OUT)}", sys.stderr), err=True)


def failed(text: str, code: int = 1) -> typer.Exit:
    """Write *text*, and return the end of the command to raise, with exit code *code*."""
    say_wrong(text)
    return typer.Exit(code)
