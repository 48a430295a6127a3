"""HTTP as lists and answers are fetched by it: without TLS, redirects or proxy, since what comes is signed.

The client, and httpx with it, is there from the first request on: most brokers never make one.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

from provisioning.client.address import NoAddress, check_address
from provisioning.starting import importing

if TYPE_CHECKING:
    import httpx

OK, NOT_MODIFIED = HTTPStatus.OK, HTTPStatus.NOT_MODIFIED


class HttpFailed(Exception):
    """There was no answer; the text says why."""


class PlainHttp:
    """Connections that are kept between requests; each wait for the network has *timeout* seconds."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._client: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def asked(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Yield the answer to a request, whose body is still to be read. Raises `HttpFailed`, also for that."""
        if not url.startswith("http://"):
            raise HttpFailed("is no http:// URL")
        client = self._client or self._open()
        import httpx  # Which is there now.

        try:
            check_address(url)
            async with client.stream(method, url, headers=headers, content=content) as response:
                yield response
        except (httpx.HTTPError, NoAddress) as error:
            raise HttpFailed(str(error) or type(error).__name__) from error

    def _open(self) -> httpx.AsyncClient:
        with importing():
            import httpx
        # Anchors of the system would be read, for forty milliseconds, and never be used.
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client = httpx.AsyncClient(verify=nobody, timeout=self._timeout, trust_env=False)
        return self._client

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()
