"""Deadlines of many connections and sessions, to the second, at O(1) each.

Theory
------
A handshake, a CONNECT, a keep alive, the end of a certificate: each is a time at which something may have to be closed,
and nearly always it need not be. So a deadline is filed once, in the bucket of its second. When the bucket is due, the
owner checks whether the deadline still stands and files the next one. Receiving a packet therefore costs one attribute
assignment, not a timer.

Rules
-----
1. An owner has at most one deadline filed. Filing again moves it; cancelling one that is not filed does nothing.
2. `due` never calls an owner early; it calls at most one second late, plus the caller's own delay.
3. No I/O, no clock: the time is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import structlog

log = structlog.get_logger("broker")


class Owner(Protocol):
    """Something with a deadline. *bucket* belongs to `Deadlines`; 0 (its initial value) means none."""

    bucket: int

    def on_deadline(self, now: float) -> None:
        """Do what is due, or file the next deadline."""


OwnerT = TypeVar("OwnerT", bound=Owner)


class Deadlines(Generic[OwnerT]):
    """Owners, by the second in which they are due."""

    __slots__ = ("_buckets", "_reached")

    def __init__(self, now: float) -> None:
        self._buckets: dict[int, set[OwnerT]] = {}
        self._reached = int(now)

    def file(self, owner: OwnerT, when: float) -> None:
        """Call *owner* at *when*, or up to a second later."""
        bucket, filed = max(math.ceil(when), self._reached + 1), owner.bucket
        if bucket == filed:
            return
        if filed:
            self._remove(owner, filed)
        owner.bucket = bucket
        owners = self._buckets.get(bucket)
        if owners is None:
            owners = self._buckets[bucket] = set()
        owners.add(owner)

    def cancel(self, owner: OwnerT) -> None:
        """Forget the deadline of *owner*, if it has one."""
        if filed := owner.bucket:
            self._remove(owner, filed)
            owner.bucket = 0

    def _remove(self, owner: OwnerT, filed: int) -> None:
        owners = self._buckets.get(filed)
        if owners is not None:
            owners.discard(owner)
            if not owners:
                del self._buckets[filed]

    def owners(self) -> list[OwnerT]:
        """Return everyone who has a deadline filed."""
        return [owner for owners in self._buckets.values() for owner in owners]

    def due(self, now: float) -> Iterator[None]:
        """Call every owner whose second has come, the earliest first: one per step, since ten thousand may be due.

        The caller must exhaust the iterator. Deadlines filed or cancelled between two steps are respected.
        """
        until = int(now)
        if until - self._reached > len(self._buckets):
            seconds = sorted(second for second in self._buckets if second <= until)
        else:
            seconds = [second for second in range(self._reached + 1, until + 1) if second in self._buckets]
        self._reached = max(self._reached, until)
        for second in seconds:
            while owners := self._buckets.get(second):
                owner = owners.pop()
                if not owners:
                    del self._buckets[second]
                owner.bucket = 0
                try:
                    owner.on_deadline(now)
                except MemoryError:  # Not the fault of this owner: `provisioning.program.out_of_memory`.
                    raise
                except Exception:  # A bug that one owner meets must not affect the others.
                    log.exception("action at a deadline failed", code="INTERNAL_ERROR")
                yield
