"""A resolver that does not answer for one domain: a library under a process, since port 53 is root's.

What waits is the look-up of the C library itself, in the thread that asyncio or uvloop has for it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")
SLOW_HOST = "crl.slow.invalid"


class SlowNames:
    """The resolver of a process that must be started with `environment`."""

    def __init__(self, directory: Path) -> None:
        self._library = directory / "slow_names.so"
        self._flag = directory / "asked"
        options = ["-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
        subprocess.run(["gcc", *options, "-o", str(self._library), str(_SOURCE), "-ldl"], check=True)

    @property
    def environment(self) -> dict[str, str]:
        """What the process needs in its environment."""
        return {"LD_PRELOAD": str(self._library), "SLOW_NAMES": str(self._flag)}

    @property
    def asked(self) -> bool:
        """Whether somebody waits for `SLOW_HOST`, or has."""
        return self._flag.exists()
