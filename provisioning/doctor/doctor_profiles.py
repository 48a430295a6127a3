"""Checks the profiles in the settings: whether the service takes them, and whether each group's is there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy.engine import Connection

from provisioning.authorities.issuing_policy import profiles_of
from provisioning.config import SETTINGS_FILE, Settings
from provisioning.doctor.doctor_finding import Finding, failed
from provisioning.enrolment.lost_profiles import lost_profiles
from provisioning.errors import ConfigurationError

_CHECK: Final = "profiles"
_NAMED: Final = 5
"""Groups."""


def profile_findings(settings: Settings) -> Iterator[Finding]:
    """Yield why the service would not start with these profiles, if it would not."""
    try:
        profiles_of(settings)
    except ConfigurationError as error:
        yield failed(_CHECK, str(error), f"correct it in {settings.directory / SETTINGS_FILE}, or in the environment")


def group_findings(connection: Connection, settings: Settings) -> Iterator[Finding]:
    """Yield a finding about each profile that groups have and the settings do not."""
    try:
        profiles = profiles_of(settings)
    except ConfigurationError:
        return  # Reported already.
    for profile, names in lost_profiles(connection, profiles).items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        yield failed(
            _CHECK,
            f"{profile!r}, of group {', '.join(names[:_NAMED])}{more}, is not configured for devices: nobody is "
            "certified or renewed there",
            f"write [profiles.{profile}] in {settings.directory / SETTINGS_FILE} again, and send the service SIGHUP; "
            f"or fleet-provisioning group set {names[0]} --profile device",
        )
