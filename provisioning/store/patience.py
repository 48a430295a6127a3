"""How long a writer's works wait for locks of other programs: as long as the server lets them, but only one of them.

Theory
------
While a work waits for a lock, all others wait for the work. If it has waited in vain, the lock may be on a row that
nobody else needs, or on a table that all need. Who has waited as long as that one has waited long enough: each of them
is tried by itself, and waits for a lock only briefly. Who came later has the whole time again.

Rules
-----
1. No work is refused for a lock that it does not need.
2. All that have waited as long wait in vain for no more than `IN_VAIN_SECONDS` together; those that are left then are
   refused without a try. So the time that others wait is bounded, however many need the lock.
"""

from __future__ import annotations

import math
from typing import Final

BRIEF_SECONDS: Final = 0.05
"""Longer than VACUUM keeps a table locked while it gives its end back, since it looks every 20 ms who waits."""
IN_VAIN_SECONDS: Final = 2.0


class Patience:
    """What is left of it; times are the monotonic clock's."""

    def __init__(self) -> None:
        self._in_vain_since = -math.inf
        self._left = 0.0

    def is_brief(self, since: float) -> bool:
        """Whether a work that has been waiting *since* has waited as long as one that waited in vain."""
        return since <= self._in_vain_since

    @property
    def is_over(self) -> bool:
        """Whether works for which it is brief are to be refused without a try."""
        return self._left <= 0

    def waited_in_vain(self, begun: float, ended: float, *, briefly: bool) -> None:
        """Note that a work waited in vain for a lock, from *begun* to *ended*."""
        if briefly:
            self._left -= ended - begun
        else:
            self._in_vain_since, self._left = begun, IN_VAIN_SECONDS
