"""The settings read anew while the service runs: what may change does, as a whole or not at all.

Rules
-----
1. Everything that is taken over is read and checked before anything of it counts. What is wrong is logged, and all
   stays as it was.
2. Flags and environment are those of the start; `provisioning.toml`, and the files that settings name, are read again.
   A file that was there and is gone is a mistake, and does not mean that everything is as built in.
3. What has changed and counts at the next start only is named. No value is ever logged: some are secrets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Final

import structlog

from provisioning.ca.key_policy import KeyPolicy
from provisioning.ca.profile import Profile
from provisioning.config import Settings
from provisioning.errors import ConfigurationError
from provisioning.issuing_policy import key_policy_of, profiles_of
from provisioning.pki.tls import TlsConfigurationError

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
        try:
            settings, profiles, key_policy, use_anchors = await asyncio.to_thread(self._read)
        except (ConfigurationError, TlsConfigurationError) as error:
            log.error("settings not reloaded: all stays as it was", error=str(error))  # noqa: TRY400
            return
        self._profiles.exchange(profiles)
        self._use_key_policy(key_policy)
        use_anchors()
        changed = {name for name in Settings.model_fields if getattr(settings, name) != getattr(self._settings, name)}
        taken = {name: getattr(settings, name) for name in TAKEN_OVER}
        self._settings = self._settings.model_copy(update=taken)
        self._read_from = settings.read_from
        log.info("settings reloaded", changed=sorted(changed & TAKEN_OVER))
        if later := sorted(changed - TAKEN_OVER):
            log.warning("settings have changed that count at the next start", settings=later)

    def _read(self) -> tuple[Settings, Mapping[str, Profile], KeyPolicy, Callable[[], None]]:
        settings = self._again()
        if settings.read_from is None and self._read_from is not None:
            raise ConfigurationError(f"{self._read_from} is gone: put it back, or an empty one where nothing is set")
        return settings, profiles_of(settings), key_policy_of(settings), self._use_webhook_anchors(settings)
