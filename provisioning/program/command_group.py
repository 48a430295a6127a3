"""Groups of commands, and their help in all three programs: plain text, with each command's summary in full.

On a terminal of 80 columns Typer's boxes truncate option names, and its plain text truncates summaries and leaves
examples as wide as they are.

Text arguments must be valid text, or the command does not begin: bytes that are not UTF-8 arrive as lone surrogates,
which no request, file or terminal accepts. A path may contain them, as file systems allow them.

A second value for an option that takes one is refused: only the last would count, and somebody who revokes two groups
would have revoked one, or a broker would read only one of two settings files. An empty path is refused, too: if a
script's variable is unset, it would mean the shell's current directory.

A name without its option (``revoke meter-17``) is refused with the option that it belongs to, and an option of the
program itself behind the command's name (``status --version``) with its place.
"""

from __future__ import annotations

import inspect
import os
import re
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption
from typer.exceptions import TyperException

from provisioning.program.fitted_help import fitted
from provisioning.program.given_file import EMPTY
from provisioning.program.given_values import convert_only_given
from provisioning.program.late_commands import Command, LateCommands
from provisioning.program.near_names import MOST, did_you_mean
from provisioning.program.printable import is_text, printable
from provisioning.program.value_words import WORDS
from provisioning.program.whole_names import whole_names

_BEGIN: Final = ("demo", "init", "serve", "run")
_NAMING: Final = ("--device", "--group")
"""What a bare word names: the first of these options that its command has."""
_QUOTED: Final = re.compile(r"(.* is not one of )('[^']+'(?:, '[^']+')*)\.")
"""Typer's list of choices, which our own lists have without quotes."""
_LIST: Final = re.compile(r"<list\[(.*)\]>")


class CommandGroup(TyperGroup):
    """A group of commands with full summaries, whose commands refuse lone surrogates."""

    late: ClassVar[Mapping[str, Command]] = {}

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        if self.late:
            self.commands: Any = LateCommands(self.late)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command; its repeatable options show the type of one value: `<str>`, not `<list[str]>`."""
        command = super().get_command(ctx, cmd_name)
        for each in () if command is None else command.params:
            if isinstance(each, TyperOption) and each.metavar is None:
                each.metavar = _kind_of_one(each.display_type(ctx))
            elif isinstance(each, TyperArgument) and (kind := _kind_of_one(each.display_type_rich(ctx=ctx))):
                each.display_type_rich = partial(_shown, kind)  # type: ignore[method-assign] # of this one only
        if command is not None and not isinstance(command, TyperGroup) and not isinstance(command.invoke, partial):
            command.invoke = partial(_invoke, command, command.invoke)  # type: ignore[method-assign] # Typer makes it
            command.parse_args = partial(_parse_args, command, command.parse_args)  # type: ignore[method-assign] # the same
            command.format_help_text = partial(_format_help_text, command)  # type: ignore[method-assign] # the same
        return command

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before the command's name by the same rules as those after it."""
        return _parse_args(self, super().parse_args, ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command that *args* begin with.

        The error for an unknown one names similar ones, or those of its groups that are called so, or else all.
        """
        try:
            return super().resolve_command(ctx, args)
        except TyperException as error:
            if error.message.startswith("No such command") and "?" not in error.message:
                inner = self._in_groups(ctx, args[0])
                if 0 < len(inner) <= MOST:
                    error.message = f"{error.message} {did_you_mean(inner).capitalize()}"
                else:
                    error.message = f"{error.message} There are {', '.join(self.list_commands(ctx))}."
            raise

    def _in_groups(self, ctx: Any, name: str) -> list[str]:
        """Return the commands called *name* of the groups here: ``certificate expiring``."""
        groups = ((each, self.get_command(ctx, each)) for each in self.list_commands(ctx))
        return [f"{each} {name}" for each, group in groups if isinstance(group, TyperGroup) and name in group.commands]

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands' names: first those to start with, which a newcomer looks for."""
        del ctx  # click's signature; not needed.
        return sorted(self.commands, key=lambda name: _BEGIN.index(name) if name in _BEGIN else len(_BEGIN))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the first paragraph of each command's help."""
        named = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, _summary(command.help or "")) for name, command in named if command is not None]
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)


def command_group(*, late: Mapping[str, Command] | None = None, **settings: Any) -> typer.Typer:
    """Return an application or a part of one, with Typer's *settings*; without a command it shows its help.

    Its commands are those in the table *late* (`LateCommands`) or, without it, those that it is given.
    """
    group = CommandGroup if late is None else type("LateGroup", (CommandGroup,), {"late": late})
    return typer.Typer(
        cls=group, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, **settings
    )


def _format_help_text(command: Any, ctx: Any, formatter: Any) -> None:
    """Write a command's help, whose examples fit the terminal and can be copied."""
    del ctx  # click's signature; not needed.
    formatter.write_paragraph()
    with formatter.indentation():
        text = inspect.cleandoc(command.help or "")
        formatter.write_text(fitted(text, formatter.width - formatter.current_indent))


def _parse_args(
    command: Any, parse_args: Callable[[Any, list[str]], list[str]], ctx: Any, args: list[str]
) -> list[str]:
    """Parse *args*; raise a usage error if an option with one value is given twice, or a path is empty."""
    convert_only_given(command.get_params(ctx))  # With --help.
    ctx.formatter_class = whole_names(ctx.formatter_class)
    if ctx.resilient_parsing:  # During shell completion.
        return parse_args(ctx, args)
    written, bare, given = _read(command, ctx, args)
    _refuse_repeated(ctx, given)
    if bare and not any(isinstance(each, TyperArgument) for each in command.params):
        _refuse_bare(command, ctx, bare)
    try:
        left = parse_args(ctx, args)
    except typer.BadParameter as error:
        error.message = _in_words(error)
        raise
    _refuse_empty(command, ctx, written, given)
    return left


def _read(command: Any, ctx: Any, args: list[str]) -> tuple[dict[str, Any], list[str], list[Any]]:
    """Return what *args* give each parameter, the words that no option took, and the parameters in their order."""
    if not args:
        return {}, [], []
    try:
        written, bare, given = command.make_parser(ctx).parse_args(args=list(args))
    except TyperException as error:
        if isinstance(name := getattr(error, "option_name", None), str):
            _refuse_late(ctx, name)
        raise
    return written, bare, given


def _refuse_repeated(ctx: Any, given: list[Any]) -> None:
    """Raise a usage error if an option that takes one value is among those *given* more than once."""
    for number, each in enumerate(given):
        if isinstance(each, TyperOption) and not (each.multiple or each.is_flag) and each in given[:number]:
            name = max(each.opts, key=len)
            ctx.fail(f"{name} is there more than once, and takes one value")


def _refuse_empty(command: Any, ctx: Any, written: Mapping[str, Any], given: list[Any]) -> None:
    """Raise a usage error if a path is *written* and empty, or a variable of an option that is not *given* is."""
    for each in given:
        if "" in _all(written[each.name]) and any(isinstance(path, Path) for path in _all(ctx.params.get(each.name))):
            raise typer.BadParameter(EMPTY, ctx=ctx, param=each)
    for each in command.params:
        if each not in given and (variable := each.envvar) is not None and os.environ.get(variable) == "":
            ctx.fail(f"{variable} {EMPTY}")


def _refuse_late(ctx: Any, name: str) -> None:
    """Raise a usage error with the place of the option *name*, if it belongs before the command's name."""
    outer = ctx.parent
    while outer is not None:
        if any(name in each.opts and not getattr(each, "hidden", False) for each in outer.command.params):
            command = ctx.command_path.removeprefix(outer.command_path).strip()
            ctx.fail(f"{name} goes before the command: {outer.command_path} {name} … {command}")
        outer = outer.parent


def _refuse_bare(command: Any, ctx: Any, bare: list[str]) -> None:
    """Raise a usage error that names the option for the words *bare*, if *command*, which takes none, has one."""
    options = {name: each for each in command.params if isinstance(each, TyperOption) for name in each.opts}
    name = next((name for name in _NAMING if name in options), None)
    if name is not None:
        words = bare if options[name].multiple else bare[:1]
        meant = " ".join(f"{name} {shlex.quote(printable(word))}" for word in words)
        ctx.fail(f"{bare[0]!r} without an option: is {meant} meant?")


def _in_words(error: typer.BadParameter) -> str:
    """Return what is wrong with a value, without pydantic's terms for it."""
    cause = error.__cause__
    kind = cause.errors()[0]["type"] if isinstance(cause, ValueError) and hasattr(cause, "errors") else ""
    said = WORDS.get(kind, error.message.removeprefix("Value error, "))
    choices = _QUOTED.fullmatch(said)
    return said if choices is None else choices[1] + choices[2].replace("'", "")


def _all(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


def _invoke(command: Any, invoke: Callable[[Any], Any], ctx: Any) -> Any:
    """Run *command*; raise `typer.BadParameter` if a text argument is not valid text.

    An error of the command's own that is about no single option is shown without "Invalid value".
    """
    for each in command.params:
        for text in _all(ctx.params.get(each.name)):
            if isinstance(text, str) and not is_text(text):
                raise typer.BadParameter(f"{text!r} is not UTF-8 text: write it in UTF-8", ctx=ctx, param=each)
    try:
        return invoke(ctx)
    except typer.BadParameter as error:
        if error.param is None and error.param_hint is None:
            ctx.fail(error.message)
        raise


def _summary(text: str) -> str:
    return " ".join(text.split("\n\n", maxsplit=1)[0].split())


def _kind_of_one(shown: str | None) -> str | None:
    """Return the element type to show instead of the list type *shown*; None if it is no list."""
    one_of_many = _LIST.fullmatch(shown or "")
    return one_of_many and f"<{one_of_many[1].lower()}>"


def _shown(kind: str, *, ctx: Any) -> str:
    del ctx  # Typer's signature; not needed.
    return kind
