"""Detects devices, keys and CAs that another process has shut out, before the feed has their certificates' events.

A device with very many certificates is shut out by one transaction, and they follow in portions
(`provisioning.revocation.portions`). Caches of their good status must be cleared at once: the process that shut the
device out clears its own, and the others check when they are notified of a commit.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from provisioning.store import unfinished_ends
from provisioning.store.database import Database


class ShutOut:
    """What one process knows of them."""

    def __init__(self, database: Database, forget: Callable[[], None]) -> None:
        """*forget* is called when there is a new one."""
        self._database = database
        self._forget = forget
        self._known: frozenset[tuple[int | str, datetime]] = frozenset()

    async def look(self) -> None:
        """Check whether there is a new one; raise `Refused` if the store fails."""
        found = await self._database.look(unfinished_ends.shut_out)
        if found - self._known:
            self._forget()
        self._known = found
