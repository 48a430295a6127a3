r"""Which build this is: hosts with the same version may run different sources.

Theory
------
The identity is a digest of the three packages' own files: the same for the same sources, from a clone, a wheel or an
image, with the hot path compiled or not. Nothing is written when it is built, no git is needed when it runs, and a file
that was changed on a host shows. `sha256sum` finds the same, in a checkout or beside the installed packages:

    find -L broker device_sim provisioning -type f ! -path '*/.*' \
      \( -name '*.py' -o -name '*.toml' -o -name '*.css' \) | LC_ALL=C sort | xargs sha256sum | sha256sum | cut -c 1-12

Rules
-----
1. It is found out once a process, at its start if it is a service: whoever replaces the files later does not change
   what runs.
2. What is hidden is no source: editors leave locks, which lead nowhere, and copies beside a file (``.#name.py``).
3. A service's start does not wait for it: `read_ahead` reads beside the imports, which take longer.
"""

from __future__ import annotations

import functools
import os
import threading
from io import FileIO
from pathlib import Path
from typing import Final

UNKNOWN: Final = "unknown"
"""Of what was installed without its sources."""
_PACKAGES: Final = ("broker", "device_sim", "provisioning")
_SUFFIXES: Final = (".py", ".toml", ".css")
_DIGITS: Final = 12
_ROOT: Final = Path(__file__).parents[2]

_reading = threading.Lock()


def build_identity() -> str:
    """Return the identity of the sources that this process runs."""
    with _reading:  # Whoever comes while it is read ahead waits for that, instead of reading all again.
        return _of_this_process()


def read_ahead() -> None:
    """Find out in a thread; not before a fork."""
    threading.Thread(target=build_identity, name="build", daemon=True).start()


def identity_of(root: Path) -> str:
    """Return the identity of the packages that lie in the folder *root*."""
    from hashlib import sha256  # Late: neither help nor completion needs it.

    whole, names = sha256(), sorted(_names(root), key=os.fsencode)
    try:
        for name in names:
            with FileIO(f"{root}/{name}") as file:  # Unbuffered: there are a thousand.
                whole.update(f"{sha256(file.readall()).hexdigest()}  ".encode() + os.fsencode(name) + b"\n")
    except OSError:
        return UNKNOWN
    return whole.hexdigest()[:_DIGITS] if any(name.endswith(".py") for name in names) else UNKNOWN


@functools.cache
def _of_this_process() -> str:
    return identity_of(_ROOT)


def _names(root: Path) -> list[str]:
    found, length = [], len(os.fspath(root)) + 1
    for package in _PACKAGES:
        for folder, folders, files in os.walk(root / package):
            folders[:] = [name for name in folders if name[0] != "."]
            found += [f"{folder[length:]}/{name}" for name in files if name.endswith(_SUFFIXES) and name[0] != "."]
    return found
