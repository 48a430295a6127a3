"""Which modules a process has imported: with ``-X importtime`` or PYTHONPROFILEIMPORTTIME it lists them on stderr."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable

from tests.support.programs import REPOSITORY

PACKAGES = {"fleet-provisioning": "provisioning", "fleet-broker": "broker", "fleet-sim": "device_sim"}
_TOLD = re.compile(r"^import time: +\d+ \| +\d+ \| +(\S+)$", re.MULTILINE)


def imported(said: str) -> set[str]:
    """Return the modules named in *said*, including failed imports."""
    return set(_TOLD.findall(said))


def ended(program: str, arguments: Iterable[str], **environment: str) -> tuple[str, set[str]]:
    """Return what a process of *program* prints, and the modules that it has imported, when it has ended well."""
    entry = f"import sys; sys.argv[0] = {program!r}; from {PACKAGES[program]}.__main__ import main; main()"
    return told(entry, arguments, **environment)


def told(code: str, arguments: Iterable[str] = (), **environment: str) -> tuple[str, set[str]]:
    """Return what a process with *code* prints, and the modules that it has imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code, *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout, imported(done.stderr)
