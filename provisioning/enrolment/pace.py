"""How fast somebody may go: a bucket for each, filled at a steady rate. Callers have them, and groups of devices.

Theory
------
A bucket holds a burst at most and gains so much a second; what is asked for takes one. It is computed when it is asked:
nothing runs in between.

A group's bucket counts certificates, first ones and successors. It is for the group that a decision has found, not for
the one that a stranger names: nobody can empty another group's bucket with requests that come to nothing, and a batch
that runs wild, or a claim that was copied, costs its own group only.

Rules
-----
1. The number of buckets is bounded. The one that was used longest ago goes; as it is the fullest, next to nothing is
   forgiven to whoever makes others go.
2. A clock that is set back gives nothing and takes nothing.
3. Each service process has buckets of its own: several on one database allow as many times as much.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable
from datetime import datetime
from typing import Final

from provisioning.errors import Code, Refused
from provisioning.store.groups import Group

_BUCKETS: Final = 16_384
_MINUTE: Final = 60


class Buckets:
    """Buckets by name. No clock: the time, in seconds, is an argument."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = float(burst)
        self._held: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def take(self, name: Hashable, now: float) -> float:
        """Take one from the bucket of *name*; return 0, or for how many seconds there is none."""
        return self._take(name, now, self._rate, self._burst)

    def _take(self, name: Hashable, now: float, rate: float, burst: float) -> float:
        level, at = self._held.pop(name, (burst, now))
        level = min(burst, level + max(0.0, now - at) * rate)
        wait = 0.0 if level >= 1 else (1 - level) / rate
        self._held[name] = (level if wait else level - 1, now)
        if len(self._held) > _BUCKETS:
            self._held.popitem(last=False)
        return wait


class GroupPace(Buckets):
    """How many certificates each group has had lately; its rules say how many it may. For several threads."""

    def __init__(self) -> None:
        super().__init__(0, 0)
        self._lock = threading.Lock()

    def certify(self, group: Group, now: datetime) -> None:
        """Take one certificate of *group*; raise `Refused` if it has had as many as it may in a minute."""
        limit = group.certificates_per_minute
        if limit is None:
            return
        with self._lock:
            wait = self._take(group.name, now.timestamp(), limit / _MINUTE, limit)
        if wait:
            seconds = math.ceil(wait)
            raise Refused(
                Code.RATE_LIMITED,
                f"group {group.name} gets {limit} certificates a minute and has had them: wait {seconds} s",
                retry_after=seconds,
            )
