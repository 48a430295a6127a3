"""Limits the size of a response's head, including the informational responses before it (RFC 9110 §15.2).

Theory
------
httpcore reads responses 100 and 103 by itself, any number of them, until the final one. Thousands of them
fit in one read, and each is parsed: a server that sends them endlessly would keep the event loop busy until the
caller's time limit. So a stream between httpcore and the socket counts bytes: from a request on, until `body_follows`
says that the head is over, it reads little at a time, so that others have their turn, and a limited total.

It imports httpcore, which is below httpx: httpx has no interface for the network stream. Import it when a client is
made: it loads httpx.

Does not handle: the body (`provisioning.client.plain_http`), and time, which the caller bounds. A caller that never
calls `body_follows` has the body counted too.
"""

from __future__ import annotations

import ssl
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Final

import httpcore
import httpx

from provisioning.client.neighbourhood import is_of_own_network
from provisioning.client.network_backend import NetworkBackend, NetworkStream, NetworkTransport
from provisioning.client.redirects import leave_unread_async

MOST_BYTES: Final = 32 * 1024
_PIECE: Final = 2 * 1024
_CONNECTIONS, _KEPT = 100, 20
"""As in httpx."""


class BoundedTransport(NetworkTransport):
    """The transport of an httpx client: HTTP/1.1, without a proxy."""

    def __init__(
        self,
        verify: ssl.SSLContext,
        *,
        connections: int | None = _CONNECTIONS,
        kept: int = _KEPT,
        elsewhere: bool = False,
    ) -> None:
        """*verify* is the TLS context for https URLs.

        There are at most so many *connections*, None: any number, of which *kept* are kept while idle. *elsewhere*: to
        none of the machine's own network (`provisioning.client.neighbourhood`), whatever a name resolves to.
        """
        super().__init__(verify, _Network(elsewhere=elsewhere), connections=connections, kept=kept)


def body_follows(response: httpx.Response) -> None:
    """Let the body of *response*, whose head is complete, be read without the limit for heads."""
    stream = response.extensions.get("network_stream")
    if isinstance(stream, _Stream):
        stream.left = None


def bounded_client(transport: BoundedTransport, timeout: float | None) -> httpx.AsyncClient:
    """Return a client that keeps no cookies: a server could have it keep any number, and send them again.

    Each wait for the network lasts *timeout* seconds at most, None: as long as the caller waits.
    """
    jar = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return httpx.AsyncClient(
        transport=transport,
        timeout=timeout,
        trust_env=False,
        follow_redirects=False,
        event_hooks={"response": [leave_unread_async]},
        cookies=jar,
    )


class _Stream(NetworkStream):
    """A connection that counts the bytes read of heads."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, known: dict[str, Any]) -> None:
        super().__init__(stream, known)
        self.left: int | None = MOST_BYTES
        """How many more bytes a head may have; None: the body is being read."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        if self.left is None:
            return await super().read(max_bytes, timeout)
        data = await super().read(min(max_bytes, _PIECE), timeout)
        self.left -= len(data)
        if self.left < 0:
            raise httpcore.RemoteProtocolError(f"more than {MOST_BYTES} bytes, and no answer to the request in them")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the same
        self.left = MOST_BYTES
        await super().write(buffer, timeout)


class _Network(NetworkBackend):
    """Opens such connections."""

    def __init__(self, *, elsewhere: bool) -> None:
        super().__init__()
        self._elsewhere = elsewhere

    async def opened(self, stream: httpcore.AsyncNetworkStream, known: dict[str, Any]) -> NetworkStream:
        reached = str(known["server_addr"][0])
        if self._elsewhere and is_of_own_network(reached):  # Nothing has been said there yet.
            await stream.aclose()
            raise httpcore.ConnectError(f"it is at {reached}, an address of this machine's own network")
        return _Stream(stream, known)
