"""The line on standard error with which a command of ``fleet-broker`` says what is wrong."""

from __future__ import annotations

import typer

from provisioning.program.printable import LAID_OUT, printable


def say_wrong(text: str) -> None:
    """Write *text*, which may quote files and answers of others, as the program's own line."""
    typer.echo(f"fleet-broker: {printable(text, also=LAID_OUT)}", err=True)


def failed(text: str, code: int = 1) -> typer.Exit:
    """Write *text*, and return the end of the command to raise, with exit code *code*."""
    say_wrong(text)
    return typer.Exit(code)
