"""What must still hold when a change is made: asked again in the transaction that makes it.

Theory
------
Whether somebody may have what he asks for is found out in a look for all who ask at once; the change is made later, and
what was found may have ended in between: he was revoked, or may do less. So a request leaves a condition, and
`Database.write` asks it at the beginning of every transaction of that request, on the connection that makes the
change. There is one writer at a time, so nothing can end between the condition and the change::

    of_one_request ─ authorise ─► require(condition) ─ … ─ write ─► BEGIN ─ condition ─ work ─ COMMIT

Rules
-----
1. A condition raises; nothing is changed then. It looks a few rows up and changes none.
2. It holds for one request: for what that request awaits, and for tasks that it has begun, until it is answered.
3. A condition without a request that it is of is a bug, and refused: nobody would ask it.
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
