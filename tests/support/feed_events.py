"""The revocation feed's events one by one, as tests await them; brokers take together what comes together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from provisioning.client.feed import follow_together
from provisioning.client.feed_reader import FeedEvent
from provisioning.pki.tls import Credential


async def follow(
    base_url: str, anchors: Path | str, credential: Credential, after: int, **options: Any
) -> AsyncGenerator[FeedEvent, None]:
    """Yield the events after the sequence number *after*; *options* are those of `follow_together`."""
    async with contextlib.aclosing(follow_together(base_url, anchors, credential, after, **options)) as together:
        async for events in together:
            for event in events:
                yield event
