"""A file of one-time tokens: only its owner can read it, and it contains every valid token of the command.

Rules
-----
1. It is created with mode 0600, replaces no other file, and is removed if nothing was written into it. What the command
   reports is on disk.
2. A token that cannot be written is voided (`provisioning.commands.unseen_tokens`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from provisioning.commands.new_file import expect_new
from provisioning.commands.unseen_tokens import void_unseen
from provisioning.errors import ConfigurationError
from provisioning.program.durable_names import sync_names

if TYPE_CHECKING:
    from provisioning.client.enrolment import EnrolmentOperatorClient
    from provisioning.client.operator_answers import IssuedToken


@contextlib.contextmanager
def private_file(path: Path) -> Iterator[FileIO]:
    """Create a file that only its owner may read; it is removed if nothing was written into it."""
    expect_new(path)
    file = FileIO(str(path), "x", opener=lambda name, flags: os.open(name, flags, 0o600))
    try:
        with file:
            sync_names(path.parent)
            yield file
    finally:
        if not path.stat().st_size:
            path.unlink()


async def keep(client: EnrolmentOperatorClient, file: FileIO, text: str, tokens: Sequence[IssuedToken]) -> None:
    """Write *text*, which contains *tokens*; if that fails, void them: nobody has seen them."""
    begin = file.tell()
    try:
        left = memoryview(text.encode())
        while left:
            left = left[file.write(left) or 0 :]
        os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):  # Of a disk that fails this, too, what is left are voided tokens.
            file.truncate(begin)
        voided = await void_unseen(client, tokens)
        raise ConfigurationError(f"{file.name} cannot be written: {error.strerror}; {voided}") from error
