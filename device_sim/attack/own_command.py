"""The tester's own command, which an attack waits for: it makes a broker reread its revocation list.

Rules
-----
1. Its outcome says nothing about the broker: if it fails, or does not end, a case cannot be tried.
2. Neither it nor what it started is left behind: it has its own process group.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence

_MOST_WORDS = 500


class CommandFailed(Exception):
    """The command has failed, or did not end; the text names it, with its output."""


async def carried_out(command: Sequence[str], within: float, environment: Mapping[str, str] | None = None) -> None:
    """Run *command* to its end within *within* seconds, with *environment* added to ours; raise `CommandFailed`."""
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
