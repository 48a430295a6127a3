"""Devices, keys and CAs that another process on the store has shut out, before the feed tells of their certificates.

A device of very many certificates is shut out by one transaction, and they follow in portions
(`provisioning.revocation.portions`). Whoever remembers that some of them are good has to forget it at once; the process
that shut it out tells itself, and the others look when they hear of a commit.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from provisioning.store import unfinished_ends
from provisioning.store.database import Database


class ShutOut:
    """What is known of them in one process."""

    def __init__(self, database: Database, forget: Callable[[], None]) -> None:
        """*forget* is called when there is another."""
        self._database = database
        self._forget = forget
        self._known: frozenset[tuple[int | str, datetime]] = frozenset()

    async def look(self) -> None:
        """Look whether there is another; raise `Refused` for the store."""
        found = await self._database.look(unfinished_ends.shut_out)
        if found - self._known:
            self._forget()
        self._known = found
