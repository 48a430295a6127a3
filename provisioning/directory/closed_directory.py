"""Checks that no other user may write to the service's directory: its keys, store and settings are trusted.

If others may read its secrets, that causes only a warning (`provisioning.pki.open_to_all`).

The owner is not checked here: root may run the service for its owner (`provisioning.directory.in_charge`). A Kubernetes
volume with ``fsGroup`` is opened to that group, with all its contents, each time it is mounted
(docs/decisions/0170-directory-of-provisioning-must-be-private.md).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import structlog

from provisioning.config import Settings
from provisioning.errors import ConfigurationError
from provisioning.pki import open_to_all
from provisioning.pki.own_directory import ForeignDirectory, check_closed

log = structlog.get_logger(__name__)


def check_directory_closed(settings: Settings) -> None:
    """Raise `ConfigurationError` if others may write to the directory, or to what is in it."""
    of_group = settings.unsafe_group_writable_directory
    try:
        with contextlib.suppress(OSError):  # Another check reports what cannot be inspected.
            check_closed(settings.directory, os.geteuid(), of_group=of_group)
    except ForeignDirectory as error:
        advice = ""
        if error.group_alone:
            advice = (
                ". If a mount opens it to a group each time (fsGroup): fsGroupChangePolicy: OnRootMismatch and a "
                "directory below the volume's own, or unsafe_group_writable_directory"
            )
        raise ConfigurationError(f"{error}{advice}") from error


def secrets_of(settings: Settings) -> list[Path]:
    """Return the private files that a service or a ceremony with *settings* uses."""
    named = (settings.passphrase_file, settings.pkcs11_pin_file)
    return [*sorted(settings.directory.glob("*.key")), *(path for path in named if path is not None)]


def warn_of_open_secrets(settings: Settings) -> None:
    """Log a warning of those that everybody may read."""
    for path in secrets_of(settings):
        if (warning := open_to_all.told_of(path)) is not None:
            log.warning("private file readable for every user", code="KEY_OPEN", detail=warning)
