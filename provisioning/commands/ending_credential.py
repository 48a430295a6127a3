"""The operator's certificate that a command uses, when it is about to expire.

Nothing else would tell its owner: the service measures its own certificates and those of devices, and the doctor knows
only what is in the service's directory. When the last operator's has expired, nobody can make a token any more.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Final

from provisioning.directory.files import read_certificate
from provisioning.errors import ConfigurationError
from provisioning.program.moments import shown_minute

_TOLD: Final = 10
"""In the last tenth of its life: five weeks of a year's, early enough to ask somebody else for a token."""


def told_of_end(path: Path, now: datetime) -> str | None:
    """Return the warning that the certificate at *path* expires soon, with the remedy; None if not, or unknown.

    What has expired is told by the service's refusal.
    """
    try:
        certificate = read_certificate(path)
    except ConfigurationError:
        return None  # Whoever presents it says why it cannot be read.
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not end - (end - begin) / _TOLD <= now < end:
        return None
    return (
        f"{path} expires on {shown_minute(end)}: renew it by /simplereenroll before that, or enrol again with a "
        "token (token create --role operator)"
    )
