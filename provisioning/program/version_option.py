"""``--version``, the same for each program: the annotation of a parameter of its callback."""

from __future__ import annotations

from typing import Any

import typer

from provisioning.program.version import version_and_build


def version_option(program: str) -> Any:
    """Return the option: it prints *program*'s name, version and build, and ends it before any command."""

    def answer(asked: bool) -> None:
        if asked:
            typer.echo(f"{program} {version_and_build()}")
            raise typer.Exit

    return typer.Option("--version", callback=answer, is_eager=True, help="Print the version.")
