"""A small file system of its own, and what it is when it is full."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_volume(options: str = "size=64m") -> Iterator[Path]:
    """Mount one with *options* of a tmpfs, where a server of another user can be: he may not enter a test's directory.

    It goes lazily: a connection that found it full is open until what it raised is freed, a cycle.
    """
    with tempfile.TemporaryDirectory(prefix="fleetgate-volume-", dir="/tmp") as name:
        place = Path(name)
        mount = ["mount", "-t", "tmpfs", "-o", f"{options},mode=0700", "none", name]
        if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode != 0:
            pytest.skip("a small file system can only be mounted by root")
        try:
            yield place
        finally:
            subprocess.run(["umount", "--lazy", place], check=True)


@contextlib.contextmanager
def full(place: Path) -> Iterator[None]:
    """Fill the file system at *place*, to the last byte, for the block."""
    ballast = place / "ballast"
    try:
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (65536, 512):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)
        yield
    finally:
        ballast.unlink()
