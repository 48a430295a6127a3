"""HTTP for fetching CRLs and OCSP responses: without TLS, redirects or proxy, since the content is signed.

Anyone on the path can answer. So nothing is decompressed, which could turn a few kilobytes into gigabytes before their
size can be checked, no head is longer than `provisioning.client.bounded_head` allows, and no body than the caller
allows. No cookie is kept: one server's would be sent to the next. The caller bounds the time, and how many requests are
under way: a bound here would be one for all on whose behalf he asks, of whom each may have servers that hang.

The client, and httpx with it, is loaded with the first request: most brokers never make one.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING

from provisioning.client.address import NoAddress, check_address
from provisioning.client.network_words import network_words
from provisioning.program.starting import importing

if TYPE_CHECKING:
    import httpx

OK, NOT_MODIFIED = HTTPStatus.OK, HTTPStatus.NOT_MODIFIED
_IDENTITY = "identity"
_FREE_CHUNKS, _LEAST_CHUNK = 500, 64
"""A body may have so many chunks, and one more per so many bytes."""


class HttpFailed(Exception):
    """No answer was received; the text says why."""


class AnswerRefused(Exception):
    """An answer was received, whose body is refused; the text says why."""


class PlainHttp:
    """Connections that are kept between requests; each wait for the network is limited to *timeout* seconds."""

    def __init__(self, timeout: float, *, elsewhere: bool = False) -> None:
        """*elsewhere*: others than this machine's administrator may have chosen the URLs, in certificates for example.

        Then none is asked whose address only the machine's own network has: a cloud gives credentials there.
        """
        self._timeout = timeout
        self._elsewhere = elsewhere
        self._client: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def asked(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Yield the answer to a request; its body is still to be read. Raises `HttpFailed`, also while reading that."""
        if not url.startswith("http://"):
            raise HttpFailed("is no http:// URL")
        client = self._client or self._open()
        import httpx  # Already loaded.

        from provisioning.client.bounded_head import body_follows

        try:
            check_address(url)
            as_it_is = {**headers, "Accept-Encoding": _IDENTITY}
            async with client.stream(method, url, headers=as_it_is, content=content) as response:
                body_follows(response)
                yield response
        except (httpx.HTTPError, NoAddress) as error:
            raise HttpFailed(network_words(error)) from error

    def _open(self) -> httpx.AsyncClient:
        with importing():
            from provisioning.client.bounded_head import BoundedTransport, bounded_client
        # A default context would load the system's trust anchors, in forty milliseconds, and never use them.
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        transport = BoundedTransport(nobody, connections=None, elsewhere=self._elsewhere)
        self._client = bounded_client(transport, self._timeout)
        return self._client

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()


async def body_of(
    response: httpx.Response, most_bytes: int, arrived: Callable[[int], None] = lambda _bytes: None
) -> bytes:
    """Return the body of *response*; *arrived* is called with how much of it has come, again and again.

    Raises `AnswerRefused` if it is compressed, longer than *most_bytes*, or in chunks of a few bytes: thousands
    of those fit in one read, and block the event loop.
    """
    if response.headers.get("Content-Encoding", _IDENTITY).lower() != _IDENTITY:
        raise AnswerRefused("the answer is compressed, though it was asked for as it is")
    body, chunks = bytearray(), 0
    async for chunk in response.aiter_raw():
        body += chunk
        chunks += 1
        if chunks > _FREE_CHUNKS + len(body) // _LEAST_CHUNK:
            raise AnswerRefused("it comes in chunks of a few bytes")
        if len(body) > most_bytes:
            raise AnswerRefused(f"more than {most_bytes} bytes")
        arrived(len(body))
    return bytes(body)
