"""Which other certificates for the keys of some are good: told to whoever suspends one, as its key is in doubt.

A suspension is of one certificate (docs/decisions/0358-each-suspension-ends-by-itself.md), and a doubt is about a key.
Only a report of the key, keyCompromise, ends all that is for it. Whoever suspends a thousand in an emergency waits for
this: so it is a few statements for all of them, and soon given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from provisioning.errors import Refused
from provisioning.program.shielded import shielded
from provisioning.store import certificates, certificates_of_key
from provisioning.store.certificates_of_key import key_of
from provisioning.store.database import Database

log = structlog.get_logger(__name__)

MOST: Final = 100
"""So many are told."""
_AT_ONCE: Final = 100
"""Keys whose certificates are looked up by one statement."""
_PATIENCE_SECONDS: Final = 2.0
"""For which an answer waits until somebody has looked."""


@dataclass(frozen=True, slots=True)
class OtherForKey:
    """A certificate that is good, and is for the same key as another one of its device."""

    serial: str
    device: str


async def others_for_keys(
    database: Database, clock: Callable[[], datetime], serials: Sequence[str]
) -> Sequence[OtherForKey]:
    """Return the good certificates for the keys of those with *serials*, but for these; nothing if that fails."""

    def look(connection: Connection) -> list[OtherForKey]:
        found: dict[str, OtherForKey] = {}
        named, suspended = frozenset(serials), certificates.of_devices_or_with_serials(connection, [], serials)
        whose = {key_of(each): each.device.name for each in suspended}
        keys = [*whose]
        for first in range(0, len(keys), _AT_ONCE):
            some = keys[first : first + _AT_ONCE]
            for key, good in zip(some, certificates_of_key.good(connection, some, clock(), MOST), strict=True):
                found |= {each: OtherForKey(each, whose[key]) for each in good if each not in named}
            if len(found) >= MOST:
                break
        return list(found.values())[:MOST]

    if not serials:
        return ()
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            # No survey, which waits for others: a suspension is urgent. Nobody cancels a reading, so it goes on.
            return await shielded(database.read(look))
    except (Refused, SQLAlchemyError, TimeoutError) as error:  # What was asked for is done all the same.
        log.info(
            "other certificates for the same keys cannot be looked up", certificates=len(serials), error=repr(error)
        )
        return ()
