"""A command of the tester's own, that an attack waits for: what makes a broker read its revocation list again.

Rules
-----
1. What becomes of it says nothing of the broker: where it fails, or does not end, a case cannot be tried.
2. It is not left behind, nor is what it has started: it has a process group of its own.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence

_MOST_WORDS = 500


class CommandFailed(Exception):
    """The command has failed, or did not end; the text names it, and has its words."""


async def carried_out(command: Sequence[str], within: float, environment: Mapping[str, str] | None = None) -> None:
    """Run *command* to its end, *within* seconds, with *environment* beside ours; raise `CommandFailed`."""
    words = " ".join(command)
    try:
        process = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **(environment or {})}, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        raise CommandFailed(f"`{words}` cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(within):
            said, _ = await process.communicate()
    except TimeoutError:
        raise CommandFailed(f"`{words}` did not end within {within:g} s") from None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        told = said.decode(errors="replace").strip()[-_MOST_WORDS:]
        raise CommandFailed(f"`{words}` ended with status {process.returncode}" + (f": {told}" if told else ""))
