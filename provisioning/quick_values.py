"""Immutable values that are created many times per request, at half the cost.

A frozen dataclass sets each field with `object.__setattr__`, which looks the name up in the class. A slot can be set
directly: its descriptor is found once, when the class is made. The result is the same class with another ``__init__``:
same parameters, same values, as immutable as before. A reader of the class can ignore the decorator.

Handles: frozen dataclasses with slots, defaults, factories, fields that ``__post_init__`` sets. Does not handle:
keyword-only fields, ``InitVar``, inheritance: a TypeError when the class is made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Final, TypeVar

ClassT = TypeVar("ClassT", bound=type)

_NOT_GIVEN: Final = object()


def quickly_made(cls: ClassT) -> ClassT:
    """Give the frozen dataclass *cls*, which has slots, an ``__init__`` that sets them directly.

    It goes above ``@dataclass(frozen=True, slots=True)``. Raise TypeError for a class that it does not fit.
    """
    slots = vars(cls).get("__slots__")
    if not is_dataclass(cls) or slots is None or tuple(slots) != tuple(each.name for each in fields(cls)):
        raise TypeError(f"{cls.__qualname__} is no dataclass with all of its own slots: use dataclass(slots=True)")
    parameters = []
    lines = []
    scope: dict[str, Any] = {"_not_given": _NOT_GIVEN}
    for each in fields(cls):
        name = each.name
        scope[f"_set_{name}"] = vars(cls)[name].__set__
        if each.kw_only:
            raise TypeError(f"{cls.__qualname__}.{name} is for keywords only: leave quickly_made out")
        if not each.init:
            continue
        if each.default_factory is not MISSING:
            scope[f"_make_{name}"] = each.default_factory
            parameters.append(f"{name}=_not_given")
            lines.append(f"_set_{name}(self, _make_{name}() if {name} is _not_given else {name})")
            continue
        if each.default is not MISSING:
            scope[f"_default_{name}"] = each.default
            parameters.append(f"{name}=_default_{name}")
        else:
            parameters.append(name)
        lines.append(f"_set_{name}(self, {name})")
    if hasattr(cls, "__post_init__"):
        lines.append("self.__post_init__()")
    text = f"def __init__(self, {', '.join(parameters)}):\n    " + "\n    ".join(lines or ["pass"])
    exec(text, scope)  # noqa: S102 - Made of the names of a class's own fields, as the dataclass's own is.
    quick: Callable[..., None] = scope["__init__"]
    cls.__init__ = functools.wraps(cls.__init__)(quick)  # type: ignore[misc] # As `dataclass` sets it.
    return cls
