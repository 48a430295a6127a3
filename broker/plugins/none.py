"""The plugins of a broker that has none: nothing is imported for them, and nothing is done."""

from __future__ import annotations

import asyncio


class NoPlugins:
    """What `broker.plugins.program.Plugins` is where there are some."""

    async def opened(self) -> None:
        """Tell nobody that the broker listens."""

    async def run(self) -> None:
        """Do nothing until cancelled."""
        await asyncio.Event().wait()

    async def closing(self) -> None:
        """Tell nobody that the broker is about to stop."""

    async def close(self) -> None:
        """Close nothing."""
