"""Redirects: not followed, and where they lead is not even read.

httpx parses the Location of a redirect also when it is not to follow it, and what it raises for one that is no URL is
partly no error of its own kind: ``Location: mailto:x``, from anyone on the way of a CRL, ended the broker's fetching.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx


def leave_unread(response: httpx.Response) -> None:
    """Remove the Location of *response*; for ``event_hooks`` of an `httpx.Client`."""
    response.headers.pop("Location", None)


async def leave_unread_async(response: httpx.Response) -> None:
    """Do the same for an `httpx.AsyncClient`."""
    leave_unread(response)
