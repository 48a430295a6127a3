"""The last ceremony that a directory knows of, by its transcript: whether the audit log confirms it.

Theory
------
A database that was restored, or recovered, to before a ceremony says nothing of it: its audit log is whole, and each CA
is as it was then, so that one which was revoked since issues again. The directory is restored by itself, and has the
transcript, whose digest the audit log lacks.

Rules
-----
1. Nothing is compared where there is no transcript, as on other machines with the same store, or while a ceremony is
   held here: its entry follows the transcript.
2. A file that is not called like a transcript is none.
3. The service runs all the same: one that is down revokes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy.engine import Connection

from provisioning.authorities.ceremony_transcript import FOLDER, begun_of, digest_of
from provisioning.directory.one_ceremony import is_held_on
from provisioning.errors import Refused
from provisioning.program.given_file import contents_of
from provisioning.store import audit
from provisioning.store.database import Database

log = structlog.get_logger(__name__)

_MOST_BYTES: Final = 1024 * 1024
REMEDY: Final = "compare ca list with the transcript, and repeat what is missing; then move the transcript away"


@dataclass(frozen=True, slots=True)
class LastCeremony:
    """A transcript, read before the store is."""

    name: str
    digest: str
    begun: datetime

    def unconfirmed(self, connection: Connection) -> str | None:
        """Return what is wrong if the audit log does not know of it; None: it does."""
        if audit.confirms(connection, self.digest, self.begun):
            return None
        return (
            f"the audit log does not confirm the last ceremony, {self.name}: the database is a copy from before it, "
            "and each CA is as it was then, so one that was revoked issues again; or the ceremony was interrupted"
        )


def last_ceremony(directory: Path) -> LastCeremony | None:
    """Return the last one of *directory*; None: there is none to compare."""
    try:
        there = [(begun, each) for each in (directory / FOLDER).glob("*.txt") if (begun := begun_of(each)) is not None]
        if not there:
            return None
        begun, path = max(there)
        digest = digest_of(contents_of(path, _MOST_BYTES))
        return None if is_held_on(directory) else LastCeremony(path.name, digest, begun)
    except OSError:  # Whoever asks may not read it.
        return None


async def compare(database: Database, directory: Path) -> None:
    """Log it if the store lacks the last ceremony of *directory*, or cannot say; for a start."""
    last = last_ceremony(directory)
    if last is None:
        return
    try:
        detail = await database.read(last.unconfirmed)
    except Refused as refusal:  # Rule 3.
        log.warning(
            "last key ceremony not compared with the store",
            code="STORE_FAILED",
            detail=f"{last.name}: {refusal.detail}",
        )
        return
    if detail is not None:
        log.error("the database has lost a ceremony", code="STORE_WENT_BACK", detail=f"{detail}; {REMEDY}")
