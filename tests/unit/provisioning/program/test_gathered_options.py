"""Options that several commands have, as the fields of a dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from provisioning.program.gathered_options import with_options

Letter = Annotated[str, typer.Option("--letter")]


@dataclass(frozen=True, slots=True)
class Where:
    place: Annotated[str | None, typer.Option(help="Which place.")] = None
    port: int = 8883


@dataclass(frozen=True, slots=True)
class Which:
    numbers: Annotated[list[int] | None, typer.Option("--number")] = None


def said(app: typer.Typer, *words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_a_command_takes_what_is_given_and_the_defaults_of_the_rest() -> None:
    app = typer.Typer()

    @app.command()
    @with_options(Where)
    def show(where: Where, letter: Letter = "a") -> None:
        typer.echo(f"{where} {letter}")

    assert said(app) == "Where(place=None, port=8883) a"
    assert said(app, "--place", "here", "--port", "1", "--letter", "b") == "Where(place='here', port=1) b"
    shown = said(app, "--help")
    assert "Which place." in shown
    assert shown.index("--place") < shown.index("--port") < shown.index("--letter")


def test_a_command_may_take_two_and_one_of_them_without_a_field() -> None:
    app = typer.Typer()

    @app.command()
    @with_options(Where, without={"port"}, behind=True)
    @with_options(Which)
    def show(which: Which, where: Where, letter: Letter = "a") -> None:
        typer.echo(f"{which} {where} {letter}")

    assert said(app, "--number", "1", "--number", "2") == "Which(numbers=[1, 2]) Where(place=None, port=8883) a"
    shown = said(app, "--help")
    assert shown.index("--number") < shown.index("--letter") < shown.index("--place")
    assert CliRunner().invoke(app, ["--port", "1"]).exit_code == 2
