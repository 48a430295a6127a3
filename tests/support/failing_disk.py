"""A disk that fails with an error number of the test's choice, and recovers: a library under the broker's SQLite.

A real one needs root and a device mapper; here the calls of the C library that write and sync the broker's database
return what the kernel would: EIO from a bad disk, EROFS from a file system that was remounted read-only.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_suffix(".c")


class FailingDisk:
    """The disk of one broker process, which must be started with `environment`."""

    def __init__(self, directory: Path) -> None:
        self._library = directory / "failing_disk.so"
        self._flag = directory / "failing_disk.errno"
        compiler = [
            "gcc",
            "-shared",
            "-fPIC",
            "-O1",
            "-Wall",
            "-Werror",
            "-o",
            str(self._library),
            str(_SOURCE),
            "-ldl",
        ]
        subprocess.run(compiler, check=True)

    @property
    def environment(self) -> dict[str, str]:
        """What the process needs in its environment."""
        return {"LD_PRELOAD": str(self._library), "FAILING_DISK": str(self._flag)}

    def fail(self, number: int, *, only_syncs: bool = False) -> None:
        """Let every write and sync end with error *number* from now on, or only the syncs."""
        new = self._flag.with_suffix(".new")
        new.write_text(str(-number if only_syncs else number))
        new.rename(self._flag)

    def recover(self) -> None:
        """Let the disk work again."""
        self._flag.unlink()
