"""The first line of a program's output, which says that it is ready, and where it listens."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from typing import IO


def ready_line(output: IO[bytes] | None, seconds: float, log: Callable[[], str]) -> str:
    """Return the first line of *output*, within *seconds*; *log* is for the error message."""
    assert output is not None
    descriptor = output.fileno()
    deadline = time.monotonic() + seconds
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        chunk = os.read(descriptor, 4096) if readable else b""
        assert chunk, f"it did not become ready\n{log()}"
        line += chunk
    return line.decode().strip()
