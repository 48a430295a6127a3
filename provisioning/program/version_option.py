"""``--version``, the same for each program: the annotation of a parameter of its callback."""

from __future__ import annotations

from typing import Any

import typer

from provisioning.program.version import product_version


def version_option(program: str) -> Any:
    """Return the option: it prints the name of *program* and its version, and ends the program before any command."""

    def answer(asked: bool) -> None:
        if asked:
            typer.echo(f"{program} {product_version()}")
            raise typer.Exit

    return typer.Option("--version", callback=answer, is_eager=True, help="Print the version.")
