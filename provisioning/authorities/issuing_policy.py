"""What may be certified, as configured: the profile of each role, and which keys are refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import combinations
from pathlib import Path

from provisioning.ca.host_patterns import may_be_below, may_clash
from provisioning.ca.key_blocklist import KeyBlocklist
from provisioning.ca.key_policy import KeyPolicy
from provisioning.ca.profile import InvalidProfile, Profile, ProfileConfig, ProfileName, profile_of
from provisioning.config import Settings
from provisioning.errors import ConfigurationError
from provisioning.program.given_file import LIST_BYTES, too_large


def profiles_of(settings: Settings) -> dict[str, Profile]:
    """Return every profile, built-in ones as configured; raise `ConfigurationError` naming what is wrong."""
    lives = {
        ProfileName.DEVICE: settings.device_life,
        ProfileName.BROKER: settings.broker_life,
        ProfileName.SERVICE: settings.service_life,
        ProfileName.OPERATOR: settings.operator_life,
        ProfileName.PROVISIONING: settings.provisioning_life,
    }
    try:
        built_in = {name.value: profile_of(_configured(settings, name, life)) for name, life in lives.items()}
        added = {
            name: profile_of(_configured(settings, name, _life_of_role(lives, table.role)))
            for name, table in settings.profiles.items()
            if name not in built_in
        }
        _check_host_names(profiles := built_in | added)
    except InvalidProfile as error:
        raise ConfigurationError(f"configuration: {error}") from error
    return profiles


def _check_host_names(profiles: Mapping[str, Profile]) -> None:
    """Raise `InvalidProfile` if two profiles, or two patterns of one, could give different devices one host name."""
    patterns = [(name, pattern) for name, profile in profiles.items() for pattern in profile.names.dns_patterns]
    for (name, pattern), (other, beside) in combinations(patterns, 2):
        if may_clash(pattern, beside):
            raise InvalidProfile(
                f"profiles.{name}.dns_patterns has {pattern!r} and profiles.{other}.dns_patterns {beside!r}: two "
                "devices could have one host name, give each pattern a domain of its own"
            )
    _check_shared_domains(profiles)
    for name, profile in profiles.items():
        for domain in profile.names.honoured_domains:
            for other, pattern in patterns:
                if may_be_below(domain, pattern):
                    raise InvalidProfile(
                        f"profiles.{name}.honoured_domains has {domain!r}, where profiles.{other}.dns_patterns put "
                        "other devices' names"
                    )


def _check_shared_domains(profiles: Mapping[str, Profile]) -> None:
    """Raise `InvalidProfile` if devices may share host names of a domain where another profile's may not."""
    honoured = [
        (name, domain, profile.names.shared_host_names)
        for name, profile in profiles.items()
        for domain in profile.names.honoured_domains
    ]
    for (name, domain, shared), (other, beside, also) in combinations(honoured, 2):
        if shared is not also and (f".{domain}".endswith(f".{beside}") or f".{beside}".endswith(f".{domain}")):
            raise InvalidProfile(
                f"profiles.{name}.honoured_domains has {domain!r} and profiles.{other}.honoured_domains {beside!r}, "
                "and only one of them has shared_host_names: give each a domain of its own"
            )


def _life_of_role(lives: Mapping[ProfileName, timedelta], role: str | None) -> timedelta:
    # An invalid role is refused with the profile; until then any life will do.
    return lives[ProfileName(role) if role in set(ProfileName) else ProfileName.DEVICE]


def _configured(settings: Settings, name: str, life: timedelta) -> ProfileConfig:
    """Return the profile called *name*; *life* comes from a separate setting."""
    table = settings.profiles.get(name)
    if table is None:
        return ProfileConfig(name, life)
    setting = f"{name}_life"
    if table.life is not None and setting in settings.model_fields_set:
        raise InvalidProfile(f"profiles.{name}.life and {setting} are both set: leave one of them out")
    given = {key: value for key, value in table.model_dump().items() if value is not None}
    return replace(ProfileConfig(name, life), **given)


def key_policy_of(settings: Settings) -> KeyPolicy:
    """Return the key policy with the configured list of published keys; raise `ConfigurationError` if it is unusable.

    The list is read, not mapped: overwriting the file would kill a process that has it mapped (SIGBUS).
    """
    path = settings.key_blocklist
    if path is None:
        return KeyPolicy()
    remedy = "make it with badkeys --update-bl, which writes ~/.cache/badkeys/blocklist.dat, or leave key_blocklist out"
    try:
        return KeyPolicy(KeyBlocklist(_records_in(path)))
    except OSError as error:
        raise ConfigurationError(f"key_blocklist {path} cannot be read: {error.strerror}; {remedy}") from error
    except ValueError as error:  # Or InvalidBlocklist.
        raise ConfigurationError(f"key_blocklist {path} is not a list of keys: {error}; {remedy}") from error


def _records_in(path: Path) -> bytes:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > LIST_BYTES:
            raise ValueError(too_large(LIST_BYTES))
        records = file.read(size)
    if not records or len(records) != size:
        raise ValueError("it is empty, or just being written")
    return records
