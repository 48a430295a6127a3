"""A file that an attacker has planted where a program will write: the attacker reads what is written."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Planted:
    """A file, or a link to one, under a name that belongs to a program; open for reading since it was planted."""

    descriptor: int

    @classmethod
    def at(cls, path: Path, *, linked: bool) -> Planted:
        """Plant it at *path*, in an existing directory."""
        theirs = path.with_name(f"{path.name}.theirs") if linked else path
        theirs.touch()
        theirs.chmod(0o666)
        if linked:
            path.symlink_to(theirs)
        return cls(os.open(theirs, os.O_RDONLY))

    def read(self) -> bytes:
        """Return what was written into it, and close it."""
        try:
            return os.pread(self.descriptor, 1 << 16, 0)
        finally:
            os.close(self.descriptor)
