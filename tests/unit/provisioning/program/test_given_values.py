"""An option that is not given has what Typer would give it, for every option of the three programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

import broker.cli
import device_sim.cli
import provisioning.cli
from provisioning.program.given_values import convert_only_given

PROGRAMS = {"fleet-provisioning": provisioning.cli.app, "fleet-broker": broker.cli.app, "fleet-sim": device_sim.cli.app}


def parameters_of(command: Any) -> Iterator[Any]:
    yield from command.get_params(typer.Context(command))
    for each in getattr(command, "commands", {}).values():
        yield from parameters_of(each)


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_value_is_what_typer_makes_of_none(program: str) -> None:
    command = typer.main.get_command(PROGRAMS[program])
    context = typer.Context(command)
    tried = 0
    for each in parameters_of(command):
        of_typer = each.get_runtime_param().coerce(None, param=each, ctx=context)
        convert_only_given([each])
        ours = each.get_runtime_param()
        assert ours.coerce(None, param=each, ctx=context) == of_typer, each.name
        convert_only_given([each])
        assert each.get_runtime_param() is ours, "it is wrapped once"
        tried += 1
    assert tried > 50
