"""A turn that callers take one after the other; where one finds no store, those who wait for it are told so, too.

Theory
------
Whoever takes the turn asks the store. Where that has disappeared, each of them would wait for its own try to connect,
five seconds, after all who came before: the tenth is answered after fifty. So it is here as in a lane
(`provisioning.store.lanes`): who has waited since before a try began that found no store gets that try's refusal.

Rules
-----
1. Who comes during the try makes the next one, so nobody waits for more than two.
2. Nothing else that a caller is refused for is the others' refusal: neither that too much waits for the store, nor a
   lock that another program holds, which may be about what one caller needs alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from typing import Final

from sqlalchemy.exc import DBAPIError

from provisioning.errors import Code, Refused
from provisioning.store.lanes import is_locked


class SharedTurn:
    """One caller at a time: ``async with turn.taken(): …``."""

    def __init__(self) -> None:
        self._lock: Final = asyncio.Lock()
        self._failed_since = -math.inf
        """When the last try began that has found no store."""
        self._detail = ""

    @contextlib.asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Wait for the turn and hold it; raise `Refused` if another's try has shown that there is no store."""
        clock = asyncio.get_running_loop().time
        since = clock()
        async with self._lock:
            if since <= self._failed_since:
                raise Refused(Code.UNAVAILABLE, self._detail)
            begun = clock()
            try:
                yield
            except Refused as refusal:
                is_by_the_store = refusal.code is Code.UNAVAILABLE and isinstance(refusal.__cause__, DBAPIError)
                if is_by_the_store and not is_locked(refusal):
                    self._failed_since, self._detail = begun, refusal.detail
                raise
