"""Programs of others that tests need: where one is missing, the test that needs it fails.

A test that is skipped for want of its judge passes in silence, on the very machine where nobody has looked.
"""

from __future__ import annotations

import os
import shutil

import pytest


def needed(program: str) -> str:
    """Return the path of *program*, which `make setup-tests` installs."""
    found = shutil.which(program, path=os.pathsep.join((os.environ["PATH"], "/usr/sbin", "/usr/local/sbin")))
    if found is None:
        pytest.fail(f"{program} is not installed: make setup-tests", pytrace=False)
    return found
