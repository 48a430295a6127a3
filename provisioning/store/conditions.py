"""Conditions that must still hold when a change is made: checked again in the transaction that makes it.

Theory
------
Whether a caller is authorised is read for all simultaneous callers together; the change is made later, and the
authorisation may have ended in between: the caller was revoked, or has fewer rights. So a request leaves a condition,
and `Database.write` checks it at the beginning of every transaction of that request, on the connection that makes the
change. There is one writer at a time, so nothing can change between the condition and the work::

    of_one_request ─ authorise ─► require(condition) ─ … ─ write ─► BEGIN ─ condition ─ work ─ COMMIT

Rules
-----
1. A condition that does not hold raises, and nothing is changed. It reads a few rows and changes none.
2. It applies to one request: to what that request awaits, and to tasks that it has started, until it is answered.
3. A condition outside of a request is a bug, and refused: it would never be checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Final, TypeVar

from sqlalchemy.engine import Connection

ResultT = TypeVar("ResultT")
Condition = Callable[[Connection], object]


class _Request:
    """What is required for one request's changes."""

    __slots__ = ("condition",)

    def __init__(self) -> None:
        self.condition: Condition | None = None


_CURRENT: Final[ContextVar[_Request | None]] = ContextVar("request", default=None)


@contextlib.contextmanager
def of_one_request() -> Iterator[None]:
    """Begin without a condition; what is required inside ends with it."""
    request = _Request()
    token = _CURRENT.set(request)
    try:
        yield
    finally:
        request.condition = None
        _CURRENT.reset(token)


def require(condition: Condition | None) -> None:
    """Ask *condition* in every transaction of this request from now on; None: nothing any more."""
    request = _CURRENT.get()
    if request is not None:
        request.condition = condition
    elif condition is not None:
        raise AssertionError("a condition is of a request: use of_one_request")


def conditioned(work: Callable[[Connection], ResultT]) -> Callable[[Connection], ResultT]:
    """Return *work* with what is required before it."""
    request = _CURRENT.get()
    if request is None or request.condition is None:
        return work
    condition = request.condition

    def both(connection: Connection) -> ResultT:
        condition(connection)
        return work(connection)

    return both
