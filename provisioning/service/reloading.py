"""Reloads the settings while the service runs: those that can change do, all together or not at all.

Rules
-----
1. All reloaded settings are read and checked before any takes effect. Errors are logged, and then nothing changes.
2. Flags and environment are those of the start; `provisioning.toml`, and the files that settings name, are read again.
   A file that has disappeared is an error, and does not reset everything to the defaults.
3. A worker that replaces another has the same settings as the others (`LastGood`).
4. Changed settings that need a restart are named in the log. No value is ever logged: some are secrets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from provisioning.authorities.issuing_policy import key_policy_of, profiles_of
from provisioning.ca.key_policy import KeyPolicy
from provisioning.ca.profile import Profile
from provisioning.config import Settings
from provisioning.errors import ConfigurationError
from provisioning.pki.tls import TlsConfigurationError, client_context

log = structlog.get_logger(__name__)

TAKEN_OVER: Final = frozenset(
    {
        "device_life",
        "broker_life",
        "service_life",
        "operator_life",
        "provisioning_life",
        "profiles",
        "key_blocklist",
        "webhook_cafile",
    }
)
"""Settings that take effect on reload."""


class LiveProfiles(Mapping[str, Profile]):
    """The profiles in force."""

    def __init__(self, profiles: Mapping[str, Profile]) -> None:
        self._now = profiles
        self.exchanged: Final = asyncio.Event()

    def exchange(self, profiles: Mapping[str, Profile]) -> None:
        """Put *profiles* into force at once, even for requests under way."""
        self._now = profiles
        self.exchanged.set()

    def __getitem__(self, name: str) -> Profile:
        """Return the profile called *name*."""
        return self._now[name]

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self._now)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._now)


@dataclass(frozen=True, slots=True)
class ReadAgain:
    """The settings as read again, with the files that they name."""

    settings: Settings
    profiles: Mapping[str, Profile]
    key_policy: KeyPolicy


def read_again(again: Callable[[], Settings], read_from: Path | None) -> ReadAgain:
    """Return what *again* reads; raise `ConfigurationError` for an error, or if the file *read_from* is gone."""
    settings = again()
    if settings.read_from is None and read_from is not None:
        raise ConfigurationError(f"{read_from} is gone: put it back, or an empty one where nothing is set")
    return ReadAgain(settings, profiles_of(settings), key_policy_of(settings))


class Reloader:
    """Reads the settings again and applies those that can change."""

    def __init__(
        self,
        settings: Settings,
        again: Callable[[], Settings],
        profiles: LiveProfiles,
        use_key_policy: Callable[[KeyPolicy], None],
        use_webhook_anchors: Callable[[Settings], Callable[[], None]],
    ) -> None:
        """*again* reads the settings as the start did.

        *use_webhook_anchors* reads the anchors and returns a function that puts them into force; it raises
        `TlsConfigurationError`.
        """
        self._settings = settings
        self._read_from = settings.read_from
        self._again = again
        self._profiles = profiles
        self._use_key_policy = use_key_policy
        self._use_webhook_anchors = use_webhook_anchors

    async def reload(self) -> None:
        """Apply what can change, or log why nothing is applied."""
        await self._take_over(lambda: read_again(self._again, self._read_from))

    async def catch_up(self, read: ReadAgain) -> None:
        """Apply what was *read* before this process started."""
        await self._take_over(lambda: read)

    async def _take_over(self, reading: Callable[[], ReadAgain]) -> None:
        try:
            read, use_anchors = await asyncio.to_thread(self._read, reading)
        except (ConfigurationError, TlsConfigurationError) as error:
            log.error("settings not reloaded: all stays as it was", code="RELOAD_REFUSED", detail=str(error))
            return
        settings = read.settings
        self._profiles.exchange(read.profiles)
        self._use_key_policy(read.key_policy)
        use_anchors()
        changed = {name for name in Settings.model_fields if getattr(settings, name) != getattr(self._settings, name)}
        taken = {name: getattr(settings, name) for name in TAKEN_OVER}
        self._settings = self._settings.model_copy(update=taken)
        self._read_from = settings.read_from
        log.info("settings reloaded", code="RELOADED", changed=sorted(changed & TAKEN_OVER))
        if later := sorted(changed - TAKEN_OVER):
            log.warning("changed settings take effect at the next start", code="RESTART_NEEDED", settings=later)

    def _read(self, reading: Callable[[], ReadAgain]) -> tuple[ReadAgain, Callable[[], None]]:
        read = reading()
        return read, self._use_webhook_anchors(read.settings)


class LastGood:
    """What was read at the last SIGHUP without errors, kept by the process that forks workers.

    A worker that replaces another begins with the settings of the start, and then gets what the others have, whatever
    the file says now. Errors are not logged here: each worker logs them.
    """

    def __init__(self, settings: Settings, again: Callable[[], Settings]) -> None:
        """*again* reads the settings as the start did."""
        self._read_from = settings.read_from
        self._again = again
        self.read: ReadAgain | None = None
        """None: what was read at the start."""

    def reload(self) -> None:
        """Read again; keep the previous settings on any error."""
        try:
            read = read_again(self._again, self._read_from)
            if read.settings.webhook_cafile is not None:
                client_context(read.settings.webhook_cafile)  # As the workers do, which apply all or nothing.
        except (ConfigurationError, TlsConfigurationError):
            return
        self.read, self._read_from = read, read.settings.read_from
