"""What may be certified, as configured: the profile of each role, and which keys are refused."""

from __future__ import annotations

import mmap

from provisioning.ca.key_blocklist import InvalidBlocklist, KeyBlocklist
from provisioning.ca.key_policy import KeyPolicy
from provisioning.ca.profile import InvalidProfile, Profile, ProfileConfig, ProfileName, profile_of
from provisioning.config import Settings
from provisioning.errors import ConfigurationError


def profiles_of(settings: Settings) -> dict[ProfileName, Profile]:
    """Return every profile as configured; raise `ConfigurationError` naming the one that is wrong."""
    lives = {
        ProfileName.DEVICE: settings.device_life,
        ProfileName.BROKER: settings.broker_life,
        ProfileName.SERVICE: settings.service_life,
        ProfileName.OPERATOR: settings.operator_life,
        ProfileName.PROVISIONING: settings.provisioning_life,
    }
    try:
        return {name: profile_of(ProfileConfig(name, life)) for name, life in lives.items()}
    except InvalidProfile as error:
        raise ConfigurationError(f"configuration: {error}") from error


def key_policy_of(settings: Settings) -> KeyPolicy:
    """Return the key policy with the configured list of published keys; raise `ConfigurationError` if it is unusable.

    The list is mapped, not read: it may have tens of megabytes.
    """
    path = settings.key_blocklist
    if path is None:
        return KeyPolicy()
    remedy = "make it with badkeys --update-bl, which writes ~/.cache/badkeys/blocklist.dat, or leave key_blocklist out"
    try:
        with path.open("rb") as file:
            return KeyPolicy(KeyBlocklist(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as error:
        raise ConfigurationError(f"key_blocklist {path} cannot be read: {error.strerror}; {remedy}") from error
    except (ValueError, InvalidBlocklist) as error:  # An empty file cannot be mapped.
        raise ConfigurationError(f"key_blocklist {path} is not a list of keys: {error}; {remedy}") from error
