"""The commands of a program, each imported and built when it is asked for: a start waits for no other command.

A table gives each name a function, or a `typer.Typer` with a command of that name or with a group's commands; written
as ``module:attribute``, like an entry point, it is imported only then. Help imports all; a command's run, its own help
and its completion import that command.

Typer's way of late commands, and click's, is a group that overrides ``list_commands`` and ``get_command``. Typer reads
``commands`` too, for suggestions, so here the mapping itself is late; asking for its names builds nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer

from provisioning.program.starting import importing

Command = str | typer.Typer | Callable[..., None]


class LateCommands(Mapping[str, Any]):
    """Commands by name, in the table's order."""

    def __init__(self, table: Mapping[str, Command]) -> None:
        self._table = table
        self._built: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._built:
            self._built[name] = _built(name, self._table[name])
        return self._built[name]

    def __contains__(self, name: object) -> bool:
        return name in self._table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


def _built(name: str, command: Command) -> Any:
    found = _imported(command) if isinstance(command, str) else command
    if not isinstance(found, typer.Typer):
        holder = typer.Typer(rich_markup_mode=None)  # As of `command_group`: Typer passes it on to what is in it.
        holder.command(name)(found)
        found = holder
    group: Any = typer.main.get_group(found)
    if name in group.commands:
        return group.commands[name]
    group.name = name
    return group


def _imported(where: str) -> Any:
    module, _, attribute = where.partition(":")
    with importing():
        imported = __import__(module, fromlist=[attribute])  # As `import` does: -X importtime tells of it.
        return getattr(imported, attribute)
