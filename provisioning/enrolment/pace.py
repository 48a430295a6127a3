"""Rate limits: token buckets, filled at a steady rate, one for each caller and one for each group of devices.

A device has no bucket. It gets certificates as fast as it likes until its `MOST_OF_DEVICE` newest are all still valid,
and then one per `SLOWLY`, so that a device which renewed in a loop is not locked out when they expire. Each of them, if
revoked, is an entry of every CRL and an event for every broker; a device that was taken apart got 225 a second.
Trials do not count: an attacker with a copied claim can make any number of them for a name, and must not keep that
device from being activated. An enrolment that spends a token is not limited: a token is worth one certificate anyway.
One that is presented beside other evidence, and not needed, is not spent.

Theory
------
A bucket holds at most a burst and gains so much a second; each request takes one. The level is computed when it is
needed: nothing runs in between.

A group's bucket counts certificates, first ones and successors. It belongs to the group that the decision has found,
not the one that the request names: nobody can empty another group's bucket with requests that fail, and a batch
that runs wild, or a copied claim, costs only its own group. It is in the store, so that all processes on one
database share it (docs/decisions/0087-group-rate-limit-in-the-store.md): two statements for a certificate of a group
that has a pace, none for others, and an undone transaction takes nothing. A caller's bucket is checked before anything
of the request is read, and each process has its own.

Rules
-----
1. The number of buckets is bounded. The least recently used one is dropped; as it is the fullest, a caller who makes
   others drop gains next to nothing.
2. A clock that is set back gives a caller nothing and takes nothing.
3. No caller waits longer than the pace says, whatever the clock did. The store has wall-clock times: one that is
   further ahead than that was written by a clock that has been set back since, and then a group's bucket counts as full
   (docs/decisions/0178-timestamps-from-a-clock-that-was-ahead.md).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.errors import Code, Refused
from provisioning.store import certificates_of_device, group_paces
from provisioning.store.devices import Device
from provisioning.store.groups import Group

MOST_OF_DEVICE: Final = 100
"""Certificates that a device may have at a time before it has to wait for the next."""
SLOWLY: Final = timedelta(hours=1)

_BUCKETS: Final = 16_384
_MINUTE: Final = 60
_FILLED: Final = timedelta(seconds=_MINUTE)
"""The time in which an empty bucket of a group fills."""


class Buckets:
    """Buckets by name. No clock: the time, in seconds, is an argument."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._held: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, name: Hashable, now: float) -> float:
        """Take one from the bucket of *name*; return 0, or the seconds until there is one."""
        level, at = self._held.pop(name, (self._burst, now))
        left, wait = _drawn(level, now - at, self._rate, self._burst)
        self._held[name] = (left, now)
        if len(self._held) > _BUCKETS:
            self._held.popitem(last=False)
        return wait


def _drawn(level: float, gone: float, rate: float, burst: float) -> tuple[float, float]:
    """Take one from a bucket that had *level*, *gone* seconds ago; return the new level, and the seconds until one."""
    level = min(burst, level + max(0.0, gone) * rate)
    return (level - 1, 0.0) if level >= 1 else (level, (1 - level) / rate)


def certify(connection: Connection, group: Group, now: datetime) -> None:
    """Take one certificate from *group*'s bucket; raise `Refused` if it has had as many as it may in a minute."""
    limit = group.certificates_per_minute
    if limit is None:
        return
    before = group_paces.held(connection, group.name)
    level, at = before or (float(limit), now)
    if at > now + _FILLED:  # It would stay empty until that time comes again: a refusal writes nothing.
        level, at = float(limit), now
    left, wait = _drawn(level, (now - at).total_seconds(), limit / _MINUTE, limit)
    if wait:
        seconds = math.ceil(wait)
        raise Refused(
            Code.RATE_LIMITED,
            f"group {group.name} has reached its limit of {limit} certificates a minute: wait {seconds} s",
            retry_after=seconds,
        )
    group_paces.leave(connection, group.name, left, now, new=before is None)


def certify_again(connection: Connection, device: Device, now: datetime) -> None:
    """Raise `Refused` if *device* has as many certificates as it may, and got the newest less than `SLOWLY` ago."""
    end = certificates_of_device.end_behind(connection, device.id, MOST_OF_DEVICE - 1)
    if end is None or end <= now:
        return
    newest = certificates_of_device.newest(connection, device.id)
    if newest is not None and abs(now - newest.issued_at) < SLOWLY:
        seconds = math.ceil((min(newest.issued_at + SLOWLY, end) - now).total_seconds())
        raise Refused(
            Code.RATE_LIMITED,
            f"{device.name} has {MOST_OF_DEVICE} certificates that are still valid, the maximum: use "
            "the newest, and renew it when it is due",
            retry_after=seconds,
        )
