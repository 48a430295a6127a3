"""An authority in a directory of its own, and the ceremonies of its CAs."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from provisioning.authorities.authority import found
from provisioning.authorities.authority_life import WAITING, AuthorityLife
from provisioning.authorities.ceremony_transcript import Transcript
from provisioning.authorities.next_authority import NextAuthority
from provisioning.config import Settings
from provisioning.directory.audit_key import read_audit_key
from provisioning.directory.files import AuthorityFiles
from provisioning.store import authorities
from provisioning.store.database import Database
from tests.support.fleet import Clock


@dataclass
class Ceremonies:
    settings: Settings
    database: Database
    clock: Clock
    life: AuthorityLife
    shown: list[str]

    async def states(self) -> dict[str, str]:
        return dict(await self.database.read(authorities.states))

    async def successor(self) -> str:
        """Begin and activate the next issuing CA, a day later."""
        await NextAuthority(self.life).begin()
        self.clock.advance(WAITING)
        return (await self.life.activate()).name


@contextlib.asynccontextmanager
async def ceremonies(directory: Path, copy_of: Path | None = None, **settings: object) -> AsyncIterator[Ceremonies]:
    """Found an authority in *directory*, with *settings*, or copy one that nothing was done with yet, on SQLite."""
    clock, shown = Clock(), list[str]()
    chosen = Settings(directory=directory, passphrase=SecretStr("secret"), **settings)  # type: ignore[arg-type]
    if copy_of is None:
        await found(chosen, ["localhost"], clock)
    else:
        shutil.copytree(copy_of, directory)
    database = Database(chosen.resolved_database_url, read_audit_key(AuthorityFiles(directory)))
    try:
        life = AuthorityLife(chosen, database, clock, Transcript("a test", clock, shown.append))
        yield Ceremonies(chosen, database, clock, life, shown)
    finally:
        await database.close()
