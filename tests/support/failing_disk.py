"""A disk that fails with a chosen error number, and recovers: a library under the broker's SQLite.

A real one needs root and a device mapper; here the C library calls that write and sync the broker's database return
what the kernel would: EIO from a bad disk, EROFS from a file system remounted read-only.
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
        """The environment that the process needs."""
        return {"LD_PRELOAD": str(self._library), "FAILING_DISK": str(self._flag)}

    def fail(self, number: int, *, only_syncs: bool = False) -> None:
        """Make every write and sync, or only the syncs, fail with error *number* from now on."""
        new = self._flag.with_suffix(".new")
        new.write_text(str(-number if only_syncs else number))
        new.rename(self._flag)

    @property
    def fails(self) -> bool:
        """Whether it fails now."""
        return self._flag.exists()

    def recover(self) -> None:
        """Make the disk work again."""
        self._flag.unlink()
