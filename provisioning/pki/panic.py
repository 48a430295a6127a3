"""What `cryptography` raises where its parser gives up: no `Exception`, so nothing that refuses a request catches it.

A panic is a fault of the library's. It ends a program that does not expect it, and leaves what only expects an
`Exception` half done: a transaction open, a request unanswered. So whoever passes on what strangers send has it become
an error like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")


class GaveUp(Exception):
    """The library's parser has given up."""


def is_panic(error: BaseException) -> bool:
    """Whether *error* is a panic; its class cannot be imported."""
    return type(error).__name__ == "PanicException"


class NoPanic:
    """A context that a panic leaves as `GaveUp`, and everything else as it is."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None and is_panic(error):
            raise GaveUp(f"the parser gave up: {error}") from error


def without_panic(call: Callable[_P, _R], *given: _P.args, **named: _P.kwargs) -> _R:
    """Return what *call* does; raise what that raises, and `GaveUp` if it panics."""
    with NoPanic():
        return call(*given, **named)


def panics_fail(work: Callable[[_T], _R]) -> Callable[[_T], _R]:
    """Return *work* such that it raises `GaveUp` where it panics."""

    def run(given: _T) -> _R:
        return without_panic(work, given)

    return run
