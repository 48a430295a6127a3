"""The service's directory is nobody else's to write: keys, store and settings in it are believed.

Whose it is does not matter here: root may run the service for its owner (`provisioning.in_charge`). A volume of
Kubernetes with ``fsGroup`` is opened to that group, with all that is in it, each time it is mounted
(docs/decisions/0170-provisioning-s-directory-is-closed.md).
"""

from __future__ import annotations

import contextlib
import os

from provisioning.config import Settings
from provisioning.errors import ConfigurationError
from provisioning.pki.own_directory import ForeignDirectory, check_closed


def check_directory_closed(settings: Settings) -> None:
    """Raise `ConfigurationError` if others may write to the directory, or to what is in it."""
    of_group = settings.unsafe_group_writable_directory
    try:
        with contextlib.suppress(OSError):  # What cannot be looked at is somebody else's to complain of.
            check_closed(settings.directory, os.geteuid(), of_group=of_group)
    except ForeignDirectory as error:
        advice = ""
        if error.group_alone:
            advice = (
                ". If a mount opens it to a group each time (fsGroup): fsGroupChangePolicy: OnRootMismatch and a "
                "directory below the volume's own, or unsafe_group_writable_directory"
            )
        raise ConfigurationError(f"{error}{advice}") from error
