"""The settings read anew while the service runs: what may change does, as a whole or not at all.

Rules
-----
1. Everything that is taken over is read and checked before anything of it counts. What is wrong is logged, and all
   stays as it was.
2. Flags and environment are those of the start; `provisioning.toml`, and the files that settings name, are read again.
   A file that was there and is gone is a mistake, and does not mean that everything is as built in.
3. A worker that takes another's place has what the others have (`LastGood`).
4. What has changed and counts at the next start only is named. No value is ever logged: some are secrets.
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
"""Settings that count from the reload on."""


class LiveProfiles(Mapping[str, Profile]):
    """The profiles that count now."""

    def __init__(self, profiles: Mapping[str, Profile]) -> None:
        self._now = profiles

    def exchange(self, profiles: Mapping[str, Profile]) -> None:
        """Have *profiles* count from now on, whoever is in the middle of what."""
        self._now = profiles

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
    """Settings as they are now, and what they name."""

    settings: Settings
    profiles: Mapping[str, Profile]
    key_policy: KeyPolicy


def read_again(again: Callable[[], Settings], read_from: Path | None) -> ReadAgain:
    """Return what *again* reads; raise `ConfigurationError` for what is wrong, or if the file *read_from* is gone."""
    settings = again()
    if settings.read_from is None and read_from is not None:
        raise ConfigurationError(f"{read_from} is gone: put it back, or an empty one where nothing is set")
    return ReadAgain(settings, profiles_of(settings), key_policy_of(settings))


class Reloader:
    """Reads the settings anew and hands on what may change."""

    def __init__(
        self,
        settings: Settings,
        again: Callable[[], Settings],
        profiles: LiveProfiles,
        use_key_policy: Callable[[KeyPolicy], None],
        use_webhook_anchors: Callable[[Settings], Callable[[], None]],
    ) -> None:
        """*again* reads the settings as the start did.

        *use_webhook_anchors* reads what they name, and returns what makes it count; it raises `TlsConfigurationError`.
        """
        self._settings = settings
        self._read_from = settings.read_from
        self._again = again
        self._profiles = profiles
        self._use_key_policy = use_key_policy
        self._use_webhook_anchors = use_webhook_anchors

    async def reload(self) -> None:
        """Take over what may change, or say why nothing of it is."""
        await self._take_over(lambda: read_again(self._again, self._read_from))

    async def catch_up(self, read: ReadAgain) -> None:
        """Take over what was *read* before this process was there."""
        await self._take_over(lambda: read)

    async def _take_over(self, reading: Callable[[], ReadAgain]) -> None:
        try:
            read, use_anchors = await asyncio.to_thread(self._read, reading)
        except (ConfigurationError, TlsConfigurationError) as error:
            log.error("settings not reloaded: all stays as it was", error=str(error))  # noqa: TRY400
            return
        settings = read.settings
        self._profiles.exchange(read.profiles)
        self._use_key_policy(read.key_policy)
        use_anchors()
        changed = {name for name in Settings.model_fields if getattr(settings, name) != getattr(self._settings, name)}
        taken = {name: getattr(settings, name) for name in TAKEN_OVER}
        self._settings = self._settings.model_copy(update=taken)
        self._read_from = settings.read_from
        log.info("settings reloaded", changed=sorted(changed & TAKEN_OVER))
        if later := sorted(changed - TAKEN_OVER):
            log.warning("settings have changed that count at the next start", settings=later)

    def _read(self, reading: Callable[[], ReadAgain]) -> tuple[ReadAgain, Callable[[], None]]:
        read = reading()
        return read, self._use_webhook_anchors(read.settings)


class LastGood:
    """What was read at the last SIGHUP that found nothing wrong, kept by who forks workers.

    A worker that takes another's place starts with the settings of the start, and then has what the others have,
    whatever has become of the file. What is wrong is not logged here: each worker says it.
    """

    def __init__(self, settings: Settings, again: Callable[[], Settings]) -> None:
        """*again* reads the settings as the start did."""
        self._read_from = settings.read_from
        self._again = again
        self.read: ReadAgain | None = None
        """None: what was read at the start."""

    def reload(self) -> None:
        """Read anew; all stays as it was if anything is wrong."""
        try:
            read = read_again(self._again, self._read_from)
            if read.settings.webhook_cafile is not None:
                client_context(read.settings.webhook_cafile)  # As the workers do, which take all of it or nothing.
        except (ConfigurationError, TlsConfigurationError):
            return
        self.read, self._read_from = read, read.settings.read_from
