"""Options shared by several commands, written once: as the fields of a dataclass, which the commands take.

Like this::

    @dataclass(frozen=True, slots=True)
    class Connection:
        url: Annotated[str | None, typer.Option(help="Where the service is.")] = None

    @app.command()
    @with_options(Connection)
    def show(connection: Connection, name: Name) -> None: ...

A command that takes two such dataclasses is decorated twice.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any

Command = Callable[..., None]


def with_options(
    gathered: type[object], *, without: Collection[str] = (), behind: bool = False
) -> Callable[[Command], Command]:
    """Give a command an option for each field of *gathered*, and call it with an instance of that, which it takes.

    The fields in *without* get no options, and keep their defaults. ``--help`` shows the options before the command's
    own, or *behind* them.
    """
    options = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, each in inspect.signature(gathered, eval_str=True).parameters.items()
        if name not in without
    ]

    def decorated(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in signature.parameters.values()]
        taken = next(each for each in own if each.annotation is gathered)
        own.remove(taken)

        @functools.wraps(command)
        def called(**given: Any) -> None:
            command(**{taken.name: gathered(**{each.name: given.pop(each.name) for each in options})}, **given)

        every = [*own, *options] if behind else [*options, *own]
        called.__signature__ = signature.replace(parameters=every)  # type: ignore[attr-defined] # `inspect` reads it
        called.__annotations__ = {each.name: each.annotation for each in every}
        del called.__wrapped__
        return called

    return decorated
