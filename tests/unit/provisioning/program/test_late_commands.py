"""Commands are imported and built when they are asked for, and their names are known before."""

from __future__ import annotations

from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from provisioning.program.command_group import command_group
from provisioning.program.late_commands import LateCommands

several = command_group(help="Both.")


@several.command()
def one() -> None:
    """Say one."""
    typer.echo("one")


@several.command()
def two() -> None:
    """Say two."""
    typer.echo("two")


def about() -> None:
    """Say."""


HERE = f"{__name__}:several"
NOWHERE = "provisioning.program.no_such_module:command"


def test_a_name_stands_for_a_function_a_command_of_a_group_or_the_group(capsys: pytest.CaptureFixture[str]) -> None:
    app = command_group(callback=about, late={"plain": one, "two": several, "both": HERE})
    whole: Any = typer.main.get_command(app)
    for words, said in (["plain"], "one\n"), (["two"], "two\n"), (["both", "one"], "one\n"):
        whole.main(words, "say", standalone_mode=False)
        assert capsys.readouterr().out == said
    assert list(whole.commands) == ["plain", "two", "both"]


def test_what_is_not_asked_for_is_not_imported() -> None:
    app = command_group(callback=about, late={"one": one, "broken": NOWHERE})
    assert CliRunner().invoke(app, ["one"]).output == "one\n"
    mistyped = CliRunner().invoke(app, ["brokn"])
    assert (mistyped.exit_code, "Did you mean 'broken'?" in mistyped.stderr) == (2, True)
    assert isinstance(CliRunner().invoke(app, ["broken"]).exception, ModuleNotFoundError)


def test_it_is_built_once_and_a_name_that_is_not_there_is_none() -> None:
    commands = LateCommands({"one": one, "broken": NOWHERE})
    assert (list(commands), len(commands), "broken" in commands, "none" in commands) == (
        ["one", "broken"],
        2,
        True,
        False,
    )
    assert commands["one"] is commands["one"]
    assert commands.get("none") is None
