"""The network below our HTTP clients: a peer that resets its connection, at any moment, is a failure like any other.

Theory
------
As soon as a connection stands, httpcore asks about it: whether there is TLS. The library below (anyio) collects
everything that it knows for that, the peer's address among it. If the peer has reset the connection meanwhile, uvloop
has let go of the socket, or the kernel knows no peer any more, and what comes of the question is an `AttributeError`:
no caller expects it, and it would end the broker whose feed, staple or list it was. Whoever is on the path can reset a
connection. So what will be asked is asked here, as soon as it is known, and a connection of which it is not known any
more has not come about.

Rules
-----
1. What a peer does to a connection ends in one of httpcore's errors; so does an `OSError` that the libraries let
   through, such as OpenSSL's for an alert behind the handshake.
2. A connection that is gone is closed, and has an end to be read: httpcore does not use it again.
3. Nor is one used again on which something has come behind an answer, be it an empty line: it would begin the answer to
   the next request, or be it.

It imports httpcore, which is below httpx: httpx has no interface for the network. Import it when a client is made: it
loads httpx.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections.abc import Iterable
from typing import Any, Final

import httpcore
import httpx

from provisioning.client.async_library import look_for_no_other

_KEPT_SECONDS: Final = 5.0
"""As in httpx."""
GONE: Final = (AttributeError, OSError, ValueError)
"""What anyio raises of a connection that is gone: uvloop has no socket for it, or one with a descriptor below zero."""
_RESET: Final = "the connection was reset as soon as it stood"


class NetworkTransport(httpx.AsyncHTTPTransport):
    """The transport of an httpx client: HTTP/1.1, without a proxy."""

    def __init__(
        self, verify: ssl.SSLContext, backend: NetworkBackend, *, connections: int | None, kept: int | None
    ) -> None:
        """*verify* is the TLS context for https URLs.

        There are at most so many *connections*, None: any number, of which *kept* are kept while idle.
        """
        look_for_no_other()
        super().__init__(verify=verify, trust_env=False)
        self._pool = _Pool(verify, backend, connections, kept)


class _Pool(httpcore.AsyncConnectionPool):
    """The connections of one client."""

    def __init__(
        self, verify: ssl.SSLContext, backend: NetworkBackend, connections: int | None, kept: int | None
    ) -> None:
        super().__init__(max_connections=connections, max_keepalive_connections=kept)
        self._made = functools.partial(
            _Connection, ssl_context=verify, keepalive_expiry=_KEPT_SECONDS, network_backend=backend
        )

    def create_connection(self, origin: httpcore.Origin) -> httpcore.AsyncConnectionInterface:
        return self._made(origin)


class _Connection(httpcore.AsyncHTTPConnection):
    """One that says of itself whether it may be used again."""

    def has_expired(self) -> bool:
        return super().has_expired() or (self.is_idle() and self._has_more())

    def _has_more(self) -> bool:
        """Whether something has come behind the last answer. In a version of httpcore that does not tell, it has."""
        parsed = getattr(self._connection, "_h11_state", None)
        return self._connection is not None and (parsed is None or bool(parsed.trailing_data[0]))


class NetworkStream(httpcore.AsyncNetworkStream):
    """A connection, and what was known of it when it came about."""

    def __init__(self, stream: httpcore.AsyncNetworkStream, known: dict[str, Any]) -> None:
        self._stream = stream
        self._known = known

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 - httpcore's
        """Return what has come, empty at the end. Raises `httpcore.ReadError`, or `httpcore.ReadTimeout`."""
        try:
            return await self._stream.read(max_bytes, timeout)
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 - the same
        """Send *buffer*. Raises `httpcore.WriteError`, or `httpcore.WriteTimeout`."""
        try:
            await self._stream.write(buffer, timeout)
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    async def aclose(self) -> None:
        """Close it."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the same
    ) -> httpcore.AsyncNetworkStream:
        """Return the same connection within TLS. Raises `httpcore.ConnectError`, or `httpcore.ConnectTimeout`."""
        try:
            secured = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except asyncio.CancelledError:  # httpcore closes it after any failure, but not then.
            await self._stream.aclose()
            raise
        return type(self)(secured, self._known | await known_of(secured, "ssl_object"))

    def get_extra_info(self, info: str) -> Any:
        """Return what is known of it; of one that is gone what was known, or None."""
        if info in self._known:
            return self._known[info]
        try:
            return self._stream.get_extra_info(info)
        except GONE:
            return True if info == "is_readable" else None


class NetworkBackend(httpcore.AnyIOBackend):
    """Opens such connections."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the same
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> NetworkStream:
        """Return a connection to *host*. Raises `httpcore.ConnectError`, or `httpcore.ConnectTimeout`."""
        stream = await super().connect_tcp(host, port, timeout, local_address, socket_options)
        return await self.opened(stream, {"ssl_object": None} | await known_of(stream, "server_addr"))

    async def opened(self, stream: httpcore.AsyncNetworkStream, known: dict[str, Any]) -> NetworkStream:
        """Return what is read and written for the new connection *stream*, of which so much is *known*.

        Closes one that is not to be used, and raises `httpcore.ConnectError`.
        """
        return NetworkStream(stream, known)


async def known_of(stream: httpcore.AsyncNetworkStream, info: str) -> dict[str, Any]:
    """Return *info* about the new connection *stream*; if it is gone, close it, and raise `httpcore.ConnectError`."""
    try:
        found = stream.get_extra_info(info)
    except GONE:
        found = None
    if found is None:
        await stream.aclose()
        raise httpcore.ConnectError(_RESET)
    return {info: found}
