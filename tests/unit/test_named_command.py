"""What is left of a command line does what the whole would, for each of the three programs."""

from __future__ import annotations

from typing import Any

import pytest
import typer.main

import broker.cli
import device_sim.cli
import provisioning.cli
from provisioning.program.named_command import named_in

APPS = {"fleet-provisioning": provisioning.cli.app, "fleet-broker": broker.cli.app, "fleet-sim": device_sim.cli.app}
WHOLE: dict[str, Any] = {program: typer.main.get_command(app) for program, app in APPS.items()}
COMMANDS = [(program, name) for program, whole in WHOLE.items() for name in whole.commands]


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_a_command_or_group_that_is_named_is_there_alone_and_as_it_is(
    program: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    part: Any = typer.main.get_command(named_in(APPS[program], [name, "--help"]))
    assert list(part.commands) == [name]

    def said(by: Any, *words: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as ended:
            by.main(list(words), prog_name=program)
        return ended.value.code, *capsys.readouterr()

    for words in ([name, "--help"], [name, "--no-such-flag"], [name, "no-such-word", "nor-this"], ["--version"]):
        assert said(part, *words) == said(WHOLE[program], *words)


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["--version"], ["serv"], ["--install-completion", "serve"], ["", "serve"]]
)
def test_without_the_name_of_one_everything_is_there(words: list[str]) -> None:
    app = APPS["fleet-provisioning"]
    assert named_in(app, words) is app


def test_the_whole_stays_whole() -> None:
    named_in(APPS["fleet-provisioning"], ["serve"])
    whole: Any = typer.main.get_command(APPS["fleet-provisioning"])
    assert list(whole.commands) == list(WHOLE["fleet-provisioning"].commands)
