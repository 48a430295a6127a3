"""Which modules a process has imported: with ``-X importtime`` or PYTHONPROFILEIMPORTTIME it tells on stderr."""

from __future__ import annotations

import re

_TOLD = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.MULTILINE)


def imported(said: str) -> set[str]:
    """Return the modules that are named in *said*; some were asked for in vain."""
    return set(_TOLD.findall(said))
