"""Which modules a process has imported: with ``-X importtime`` or PYTHONPROFILEIMPORTTIME it lists them on stderr."""

from __future__ import annotations

import re

_TOLD = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.MULTILINE)


def imported(said: str) -> set[str]:
    """Return the modules named in *said*, including failed imports."""
    return set(_TOLD.findall(said))
