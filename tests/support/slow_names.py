"""A resolver that does not answer for one domain: a library preloaded into a process, since port 53 needs root.

The wait is in the C library's own look-up, in the thread that asyncio or uvloop uses for it.
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
        """The environment that the process needs."""
        return {"LD_PRELOAD": str(self._library), "SLOW_NAMES": str(self._flag)}

    @property
    def asked(self) -> bool:
        """Whether something waits for `SLOW_HOST`, or has."""
        return self._flag.exists()
