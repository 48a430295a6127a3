"""The part of a command line that is used: creating every command's options takes a twentieth of a start."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import typer
from typer.main import get_command_name
from typer.models import CommandInfo


def named_in(app: typer.Typer, words: Sequence[str]) -> typer.Typer:
    """Return *app* with only the command or group that the first of *words* names; all of it, if that names none.

    So help, completion, suggestions, and any line that begins with an option, see every command.
    """
    name = words[0] if words else ""
    commands = [each for each in app.registered_commands if _name(each) == name]
    groups = [each for each in app.registered_groups if each.name == name]
    if not commands and not groups:
        return app
    part = copy.copy(app)
    part.registered_commands, part.registered_groups = commands, groups
    return part


def _name(command: CommandInfo) -> str:
    return command.name or get_command_name(getattr(command.callback, "__name__", ""))
