"""The values of options and arguments are converted if they are given, and pydantic is imported for that only then.

Typer makes a pydantic adapter for every option when a command is called, and for the program's own ones at every
completion: a third of what a light start costs, for values that are None and stay so. At a completion nothing is
converted, neither what was typed nor a default: the few that look at a value read it themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any


def convert_only_given(parameters: Iterable[Any]) -> None:
    """Let *parameters*, Typer's, convert only a value; without one each has what Typer would give it."""
    for each in parameters:
        if not isinstance(each.get_runtime_param, _OnlyGiven):
            each.get_runtime_param = _OnlyGiven(each.get_runtime_param)


class _OnlyGiven:
    """What Typer calls for a parameter's converter, and then the converter: Typer's own, once it is needed."""

    def __init__(self, build: Callable[[], Any]) -> None:
        self._build = build

    def __call__(self) -> _OnlyGiven:
        return self

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        if ctx.resilient_parsing:  # During shell completion.
            return value
        return self._build().coerce(value, param=param, ctx=ctx)
