"""The plugins of a broker that has none: nothing is imported for them, and nothing is done."""

from __future__ import annotations

import asyncio


class NoPlugins:
    """Takes the place of `broker.plugins.program.Plugins`."""

    async def begin(self) -> None:
        """Do nothing when the broker is about to listen."""

    async def opened(self) -> None:
        """Do nothing when the broker listens."""

    async def run(self) -> None:
        """Do nothing until cancelled."""
        await asyncio.Event().wait()

    async def closing(self) -> None:
        """Do nothing when the broker is about to stop."""

    async def close(self) -> None:
        """Do nothing."""
