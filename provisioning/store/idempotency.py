"""Queries about idempotency keys: which requests are in progress or were answered. The stored answers are encrypted.

An answer of no octets says that the request has changed something, and was not answered yet.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import bindparam, delete, select, union_all, update
from sqlalchemy.engine import Connection

from provisioning.store.dialect_insert import insert_into
from provisioning.store.tables import idempotency_keys

PORTION: Final = 100
"""How many requests are removed at a time."""

_FIND: Final = select(idempotency_keys).where(idempotency_keys.c.digest == bindparam("wanted")).with_for_update()
_HELD: Final = idempotency_keys.c.digest == bindparam("wanted"), idempotency_keys.c.begun_at == bindparam("begun")
_FINISH: Final = update(idempotency_keys).where(*_HELD).values(answer=bindparam("said"))
_FORGET: Final = delete(idempotency_keys).where(*_HELD)
_FORGET_UNCHANGED: Final = _FORGET.where(idempotency_keys.c.answer.is_(None))
_CHANGED: Final = b""


@functools.cache
def _begin(dialect: str) -> Any:
    insert = insert_into(idempotency_keys, dialect)
    kept = insert.on_conflict_do_nothing(index_elements=[idempotency_keys.c.digest])
    return kept.returning(idempotency_keys.c.digest)


@dataclass(frozen=True, slots=True)
class KnownRequest:
    """A request that has used the key; *answer* is None until it is answered, *changed* whether it was recorded so."""

    request_digest: bytes
    begun_at: datetime
    answer: bytes | None
    changed: bool


def begin(connection: Connection, digest: bytes, request_digest: bytes, now: datetime) -> KnownRequest | None:
    """Take the key for a request; return the request that already has it, None if the caller has it now."""
    row = {"digest": digest, "request_digest": request_digest, "begun_at": now}
    if connection.execute(_begin(connection.dialect.name), row).one_or_none() is not None:
        return None
    found = connection.execute(_FIND, {"wanted": digest}).one()
    return KnownRequest(found.request_digest, found.begun_at, found.answer or None, found.answer is not None)


def begin_again(connection: Connection, digest: bytes, now: datetime) -> None:
    """Take over the key of a request whose process has died."""
    held = idempotency_keys.c.digest == digest
    connection.execute(update(idempotency_keys).where(held).values(begun_at=now))


def record_change(connection: Connection, digest: bytes, begun_at: datetime) -> bool:
    """Record that the request changes something; return False if another has taken the key since *begun_at*."""
    values = {"wanted": digest, "begun": begun_at, "said": _CHANGED}
    return connection.execute(_FINISH, values).rowcount == 1


def finish(connection: Connection, digest: bytes, begun_at: datetime, answer: bytes) -> None:
    """Store the answer; not under a key that another has taken since *begun_at*, perhaps for another request."""
    connection.execute(_FINISH, {"wanted": digest, "begun": begun_at, "said": answer})


def forget(connection: Connection, digest: bytes, begun_at: datetime, *, though_changed: bool) -> None:
    """Free the key, not one that another has taken since *begun_at*.

    One under which something was changed is freed only if *though_changed*.
    """
    connection.execute(_FORGET if though_changed else _FORGET_UNCHANGED, {"wanted": digest, "begun": begun_at})


def remove_older(connection: Connection, digest: bytes, before: datetime) -> None:
    """Remove the request that has the key if it began *before* that time, and some others that did.

    More than a caller adds, so that none are left in the end; not all at once, while all others wait for the writer.
    """
    keys = idempotency_keys.c
    ended = select(keys.digest).where(keys.begun_at < before)
    some = ended.order_by(keys.begun_at).limit(PORTION).subquery()
    # Not joined by OR: PostgreSQL would read all keys for it where many have ended.
    these = union_all(ended.where(keys.digest == digest), select(some.c.digest))
    connection.execute(delete(idempotency_keys).where(keys.digest.in_(these)))
