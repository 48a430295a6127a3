"""Tells which groups have a profile that is not configured: nobody is certified there, nor renewed, until it is.

A group's profile is checked when the group is made or changed; the settings lose it later, by a mistake in the file, or
as another host's file never had it. Devices would notice first, each by a refusal (503).

Rules
-----
1. Each state is logged once, until it changes; a restart logs it again.
2. It is looked for at the start, when the settings were read again, and each minute.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from functools import partial
from typing import Final

import structlog
from sqlalchemy.engine import Connection

from provisioning.ca.profile import Profile
from provisioning.errors import Refused
from provisioning.pki.role import Role
from provisioning.store import groups
from provisioning.store.database import Database

log = structlog.get_logger(__name__)

_ROUND_SECONDS: Final = 60.0


def is_for_devices(profiles: Mapping[str, Profile], name: str) -> bool:
    """Whether there is a profile of that name, and it is one for devices."""
    profile = profiles.get(name)
    return profile is not None and profile.role is Role.DEVICE


def lost_profiles(connection: Connection, profiles: Mapping[str, Profile]) -> dict[str, list[str]]:
    """Return the names of the groups that have each profile which is not among *profiles*."""
    found: dict[str, list[str]] = {}
    for each in groups.every(connection):
        if not is_for_devices(profiles, each.profile):
            found.setdefault(each.profile, []).append(each.name)
    return found


class ProfileWatch:
    """Looks now and then whether all groups' profiles are configured."""

    def __init__(self, database: Database, profiles: Mapping[str, Profile], changed: asyncio.Event) -> None:
        """Look at *profiles* again when *changed* is set."""
        self._database = database
        self._profiles = profiles
        self._changed = changed
        self._said: dict[str, list[str]] = {}

    async def look(self) -> None:
        """Look now, and log what has changed; a store that does not answer is looked at again."""
        with contextlib.suppress(Refused):
            found = await self._database.read(partial(lost_profiles, profiles=self._profiles))
            for profile, names in found.items():
                if self._said.get(profile) != names:
                    log.error("profile not configured", code="PROFILE_UNKNOWN", profile=profile, groups=names)
            self._said = found

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            self._changed.clear()
            await self.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ROUND_SECONDS):
                    await self._changed.wait()
