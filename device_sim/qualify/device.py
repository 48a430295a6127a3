"""The device under test: a program started for each stage, or hardware that is told once where to connect.

Rules
-----
1. A program runs in its own session; at the end of its stage it and its children are gone.
2. Its output is kept in ``device.log`` of its stage.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from device_sim.qualify.placeholders import PLACEHOLDERS
from device_sim.stage.child_log import opened_log
from device_sim.stage.foreign_process import stop
from device_sim.stage.left_behind import left_behind

_GRACE = 2.0


class BadCommand(Exception):
    """The device's command cannot be run; the text names the place and the remedy."""


class Presence(Protocol):
    """A device during one stage."""

    @property
    def status(self) -> int | None:
        """Its exit status, if it has ended by itself."""

    @property
    def gone(self) -> bool:
        """Whether nothing more will come: it and everything it started have ended."""

    @property
    def session(self) -> int | None:
        """The session (setsid) of its processes, if they run here."""


class Hardware:
    """A device that cannot be started from here."""

    status: int | None = None
    gone = False
    session: int | None = None

    def mentions(self, _placeholder: str) -> bool:
        """Whether it is given this placeholder; for hardware this is unknown."""
        return False

    @asynccontextmanager
    async def present(self, _values: Mapping[str, str], _log: Path) -> AsyncIterator[Presence]:
        """Wait for it to come by itself."""
        yield self


class Program:
    """A command with placeholders, run anew for each stage."""

    def __init__(self, command: str) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise BadCommand(f"--exec: {error}: close the quotation") from None
        if not self._words:
            raise BadCommand("--exec is empty: give the command that starts the device")
        self._filled(dict.fromkeys(PLACEHOLDERS, ""))

    def mentions(self, placeholder: str) -> bool:
        """Whether the command uses this placeholder."""
        return any(f"{{{placeholder}}}" in word for word in self._words)

    def _filled(self, values: Mapping[str, str]) -> list[str]:
        try:
            return [word.format_map(values) for word in self._words]
        except (KeyError, ValueError, IndexError) as error:
            known = " ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise BadCommand(f"--exec: {error} is no placeholder: there are {known}; write {{{{ for a brace") from None

    @asynccontextmanager
    async def present(self, values: Mapping[str, str], log: Path) -> AsyncIterator[Presence]:
        """Run it until the context is left."""
        words = self._filled(values)
        with opened_log(log) as output:
            try:
                process = await asyncio.create_subprocess_exec(
                    *words, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            except OSError as error:
                raise BadCommand(f"--exec: {words[0]} cannot be run: {error.strerror}") from error
        try:
            yield _Running(process)
        finally:
            await stop(process, _GRACE)


class _Running:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @property
    def session(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        return self._process.returncode

    @property
    def gone(self) -> bool:
        if self.status is None:
            return False
        try:
            os.killpg(self._process.pid, 0)
        except ProcessLookupError:
            return True
        return not left_behind(self._process.pid)


Device = Program | Hardware
