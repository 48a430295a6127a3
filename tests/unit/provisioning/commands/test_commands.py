"""The command line as a whole: what every command must have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
from typer.testing import CliRunner

from provisioning.cli import app
from provisioning.commands import approval_commands, group_commands
from provisioning.store.approvals import ApprovalState
from provisioning.store.authorities import DEFAULT_LINE
from provisioning.store.groups import NewKey, WayName


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield every command below a group, by how it is typed."""
    children = getattr(command, "commands", None)
    if children is None:
        yield " ".join(path), command
        return
    for name, child in children.items():
        yield from commands(child, (*path, name))


PROGRAM = typer.main.get_command(app)
EVERY = dict(commands(PROGRAM))


def test_the_walk_finds_commands_at_every_depth() -> None:
    assert {"init", "token void", "ca rollover begin", "listed remove"} <= EVERY.keys()
    assert len(EVERY) > 40


@pytest.mark.parametrize("name", EVERY)
def test_every_command_prints_json_when_asked(name: str) -> None:
    options = {option for parameter in EVERY[name].params for option in parameter.opts}
    assert "--json" in options


@pytest.mark.parametrize("name", EVERY)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        PROGRAM([*name.split(), "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--json" in shown
    assert name == "version" or "Example:" in shown


def test_the_choices_are_those_of_the_store() -> None:
    assert get_args(approval_commands.State) == tuple(ApprovalState)
    assert get_args(group_commands.NewKey) == tuple(NewKey)
    assert tuple(WayName) == group_commands.WAYS
    assert {each.default for each in EVERY["ca rollover begin"].params if "--line" in each.opts} == {DEFAULT_LINE}


@pytest.mark.parametrize(
    "command",
    [
        ("ca", "list"),
        ("ca", "rollover", "begin"),
        ("ca", "rollover", "activate"),
        ("audit", "show"),
        ("audit", "verify"),
    ],
    ids=" ".join,
)
def test_a_directory_without_an_authority_is_told_with_what_to_do(command: tuple[str, ...], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [*command, "--dir", str(tmp_path)])
    said = (
        f"fleet-provisioning: {tmp_path} holds no certificate authority: give the right --dir, or run "
        f"fleet-provisioning init --dir {tmp_path}\n"
    )
    assert (done.exit_code, done.stderr) == (1, said)
