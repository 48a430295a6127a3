"""What is left of the command line does what the whole would."""

from __future__ import annotations

from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from provisioning.cli import app
from provisioning.named_command import named_in

WHOLE: Any = typer.main.get_command(app)


def run(of: typer.Typer, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(of, words, prog_name="fleet-provisioning")
    return done.exit_code, done.output


@pytest.mark.parametrize("name", WHOLE.commands)
def test_a_command_or_group_that_is_named_is_there_alone_and_as_it_is(name: str) -> None:
    part = named_in(app, [name, "--help"])
    command: Any = typer.main.get_command(part)
    assert list(command.commands) == [name]
    for words in ([name, "--help"], [name, "--no-such-flag"], [name, "no-such-word", "nor-this"], ["--version"]):
        assert run(part, *words) == run(app, *words)


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["--version"], ["serv"], ["--install-completion", "serve"], ["", "serve"]]
)
def test_without_the_name_of_one_everything_is_there(words: list[str]) -> None:
    assert named_in(app, words) is app


def test_the_whole_stays_whole() -> None:
    named_in(app, ["serve"])
    whole: Any = typer.main.get_command(app)
    assert list(whole.commands) == list(WHOLE.commands)
