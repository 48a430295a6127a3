"""Which other certificates for the keys of some are good: told to whoever suspends one, as its key is in doubt.

A suspension is of one certificate (docs/decisions/0358-each-suspension-ends-by-itself.md), and a doubt is about a key.
Only a report of the key, keyCompromise, ends all that is for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from provisioning.errors import Refused
from provisioning.store import certificates, certificates_of_key
from provisioning.store.certificates_of_key import key_of
from provisioning.store.database import Database

log = structlog.get_logger(__name__)

MOST: Final = 100
"""So many are told."""


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
        for serial in serials:
            if len(found) >= MOST:
                break
            each = certificates.with_serial(connection, serial)
            others = certificates_of_key.good(connection, key_of(each), clock(), MOST)
            found |= {other: OtherForKey(other, each.device.name) for other in others if other not in serials}
        return list(found.values())[:MOST]

    try:
        return await database.survey(look) if serials else ()
    except (Refused, SQLAlchemyError) as error:  # What was asked for is done all the same.
        log.info("other certificates for the keys are not told", certificates=len(serials), error=str(error))
        return ()
