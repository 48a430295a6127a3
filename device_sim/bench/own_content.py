"""The payload that a user gives `fleet-sim bench pub`: words, or a file's contents. It is sent as it is.

It has no stamp, so nobody can say of such a message when it was due, which one it is, and whether it is as it was sent.
What is not checked is said (`UNCHECKED`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from device_sim.bench.sizes import LARGEST
from provisioning.program.given_file import contents_of, unread

UNCHECKED: Final = (
    "the payload is yours and has no number: who receives it knows nothing of its latency, and not whether messages "
    "are missing, duplicated, out of order or altered"
)


def own_content(message: str | None, file: Path | None) -> bytes | None:
    """Return the user's payload; None: there is none. Raises `ValueError`, in the words of the options."""
    if message is not None and file is not None:
        raise ValueError("--message and --payload-file: there is one payload; leave one of them out")
    if message is not None:
        content = message.encode(errors="surrogateescape")  # What the shell has given, whatever it is.
        if len(content) > LARGEST:
            raise ValueError(f"--message: {len(content)} bytes; {LARGEST} at most")
        return content
    if file is None:
        return None
    try:
        return contents_of(file, LARGEST)
    except OSError as error:
        raise ValueError(f"--payload-file {unread(file, error)}") from error
