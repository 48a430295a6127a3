"""Conditions that must still hold when a change is made: checked again in the transaction that makes it.

Theory
------
Whether a caller is authorised is read for all simultaneous callers together; the change is made later, and the
authorisation may have ended in between: the caller was revoked, or has fewer rights. So a request leaves a condition,
and `Database.write` checks it at the beginning of every transaction of that request, on the connection that makes the
change. There is one writer at a time, so nothing can change between the condition and the work::

    of_one_request ─ authorise ─► require(condition) ─ … ─ write ─► BEGIN ─ condition ─ work ─ COMMIT

A request may also leave a record, which every one of its transactions makes: then it says for certain whether any of
them was committed, whatever became of the answer (`provisioning.api.idempotency`).

Rules
-----
1. A condition that does not hold raises, and nothing is changed. It reads a few rows and changes none. A record comes
   after it, and may raise, too.
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

    __slots__ = ("condition", "record")

    def __init__(self) -> None:
        self.condition: Condition | None = None
        self.record: Condition | None = None


_CURRENT: Final[ContextVar[_Request | None]] = ContextVar("request", default=None)


@contextlib.contextmanager
def of_one_request() -> Iterator[None]:
    """Begin without a condition; what is required inside ends with it."""
    request = _Request()
    token = _CURRENT.set(request)
    try:
        yield
    finally:
        request.condition = request.record = None
        _CURRENT.reset(token)


def require(condition: Condition | None) -> None:
    """Ask *condition* in every transaction of this request from now on; None: nothing any more."""
    request = _CURRENT.get()
    if request is not None:
        request.condition = condition
    elif condition is not None:
        raise AssertionError("a condition is of a request: use of_one_request")


def record(record: Condition | None) -> None:
    """Make *record* in every transaction of this request from now on; None: none any more."""
    request = _CURRENT.get()
    if request is not None:
        request.record = record
    elif record is not None:
        raise AssertionError("a record is of a request: use of_one_request")


def conditioned(work: Callable[[Connection], ResultT]) -> Callable[[Connection], ResultT]:
    """Return *work* with what is required, and then recorded, before it."""
    request = _CURRENT.get()
    if request is None:
        return work
    before = [each for each in (request.condition, request.record) if each is not None]
    if not before:
        return work

    def all_of_it(connection: Connection) -> ResultT:
        for each in before:
            each(connection)
        return work(connection)

    return all_of_it
