"""A client of a running broker's admin API, for the command line.

Rules
-----
1. There are two errors: no broker answers there (`BrokerUnreachable`; nothing does, or something else), or the broker
   refuses (`RequestRefused`). Each text gives the remedy.
2. An answer is kept whole only up to `_MOST_BYTES`, and what is compressed is not unpacked: few bytes of something else
   that answers there would stand for many.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx

from broker.admin.unix_socket import address_of
from provisioning.client.address import NoAddress, check_address
from provisioning.client.answer_body import document_of, text_of
from provisioning.client.redirects import leave_unread

if TYPE_CHECKING:
    from provisioning.pki.tls import Credential

_JSON = "application/json"
_ANSWERED = {
    "/v1/status": "name",
    "/v1/sessions": "sessions",
    "/v1/subscriptions": "subscriptions",
    "/v1/sessions/kick": "kicked",
    "/v1/trust": "anchors",
    "/v1/crls": "lists",
    "/v1/crls/try": "lists",
    "/v1/why": "about",
    "/v1/check": "admitted",
    "/v1/reload": "parts",
}
"""A field that each answer of a broker has, of those that come in pieces the first: by it a broker is known."""
_SOMETHING_ELSE = "what answers there is something else"
_PATIENCE = httpx.Timeout(30.0, connect=5.0)
_HOOKS = {"response": [leave_unread]}
_IDENTITY = "identity"
_AS_IT_IS = {"Accept-Encoding": _IDENTITY}
_MOST_BYTES = 256 * 1024 * 1024
"""Some hundred thousand sessions."""


class BrokerUnreachable(Exception):
    """No broker answers there."""


class RequestRefused(Exception):
    """The broker has answered with a refusal."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}" if code else detail)
        self.code = code


class AdminClient:
    """One connection to one broker."""

    def __init__(self, where: str, client: httpx.Client, stack: contextlib.ExitStack) -> None:
        self._where = where
        self._client = client
        self._stack = stack

    @classmethod
    def at_socket(cls, path: Path) -> Self:
        """Return a client of the broker whose socket is *path*. Raises `BrokerUnreachable`."""
        with contextlib.ExitStack() as stack:
            try:
                address = stack.enter_context(address_of(path))
                with socket.socket(socket.AF_UNIX) as probe:  # Its error says what is wrong.
                    probe.connect(address)
            except OSError as error:
                raise BrokerUnreachable(_nobody(str(path), error.strerror or str(error))) from error
            no_anchors = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Not the system's, which take long to read.
            transport = httpx.HTTPTransport(uds=address, verify=no_anchors)
            client = stack.enter_context(
                httpx.Client(
                    transport=transport,
                    base_url="http://broker",
                    timeout=_PATIENCE,
                    trust_env=False,
                    headers=_AS_IT_IS,
                    event_hooks=_HOOKS,
                )
            )
            return cls(str(path), client, stack.pop_all())
        raise AssertionError("the stack swallows nothing")

    @classmethod
    def at_url(cls, url: str, anchors: Path, credential: Credential) -> Self:
        """Return a client of the broker whose admin port is *url*.

        Raises `BrokerUnreachable`, `TlsConfigurationError`.
        """
        from broker.admin.genuine_broker import genuine_broker  # Late: most brokers are asked at their socket.
        from provisioning.client.genuine_server import trust_domain_of
        from provisioning.pki.tls import client_context

        context = client_context(anchors, credential)
        context.sslsocket_class = genuine_broker(trust_domain_of(credential))
        with contextlib.ExitStack() as stack:
            try:
                check_address(url)
                client = httpx.Client(
                    base_url=url,
                    verify=context,
                    timeout=_PATIENCE,
                    trust_env=False,
                    headers=_AS_IT_IS,
                    event_hooks=_HOOKS,
                )
            except NoAddress as error:
                raise BrokerUnreachable(_nobody(url, str(error))) from error
            return cls(url, stack.enter_context(client), stack.pop_all())
        raise AssertionError("the stack swallows nothing")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def get(self, path: str, **query: str | None) -> Any:
        """Return the answer to GET *path* with those of *query* that are given."""
        return self._document("GET", path, params=_given(query))

    def post(self, path: str, document: dict[str, Any]) -> Any:
        """Return the answer to POST of *document*."""
        return self._document("POST", path, json=document)

    def post_pem(self, path: str, pem: bytes) -> Any:
        """Return the answer to POST of the certificates in *pem*."""
        return self.post_bytes(path, pem, "application/x-pem-file")

    def post_bytes(self, path: str, content: bytes, media_type: str) -> Any:
        """Return the answer to POST of *content*."""
        return self._document("POST", path, content=content, headers={"Content-Type": media_type})

    def stream(self, path: str, **query: str | None) -> Iterator[bytes]:
        """Yield the answer to GET *path* as it arrives."""
        with self._answer("GET", path, params=_given(query)) as response:
            if not (response.is_success and response.headers.get("Content-Type", "").startswith(_JSON)):
                raise self._no_broker()
            yield from self._a_brokers(response.iter_raw(), path)

    def _a_brokers(self, pieces: Iterator[bytes], path: str) -> Iterator[bytes]:
        """Yield *pieces*, the first of them only if a broker's answer to GET *path* begins so."""
        begin, first = f'{{"{_ANSWERED[path]}": '.encode(), b""
        for piece in pieces:
            first += piece
            if len(first) >= len(begin):
                break
        if not first.startswith(begin):
            raise self._no_broker()
        yield first
        yield from pieces

    def _no_broker(self) -> BrokerUnreachable:
        return BrokerUnreachable(_nobody(self._where, _SOMETHING_ELSE))

    def _document(self, method: str, path: str, **arguments: Any) -> Any:
        with self._answer(method, path, **arguments) as response:
            with contextlib.suppress(ValueError):
                document = document_of(_whole(response))
                if response.is_success and isinstance(document, dict) and _ANSWERED[path] in document:
                    return document
            raise self._no_broker()

    @contextlib.contextmanager
    def _answer(self, method: str, path: str, **arguments: Any) -> Iterator[httpx.Response]:
        """Send a request, and yield the answer, whose body is still to be read; raise what it refuses."""
        with self._errors(), self._client.stream(method, path, **arguments) as response:
            if response.headers.get("Content-Encoding", _IDENTITY).lower() != _IDENTITY:
                raise self._no_broker()
            if response.is_error:
                raise _refused(_whole(response))
            yield response

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            raise BrokerUnreachable(_nobody(self._where, str(error))) from error
        except httpx.InvalidURL as error:  # More than 65,536 characters, before anything is sent.
            raise RequestRefused("", f"the request is too long ({error}): give fewer or shorter values") from error


def _nobody(where: str, why: str) -> str:
    if where.startswith("https://"):
        return (
            f"no broker answers at {where} ({why}): check that admin_port is set there and that the "
            "certificate is an operator's"
        )
    return (
        f"no broker answers at {where} ({why}): start it, or name the right one with --state-dir, "
        "--admin-socket or --config; only the broker's user may open the socket"
    )


def _given(query: dict[str, str | None]) -> dict[str, str]:
    return {key: value for key, value in query.items() if value is not None}


def _whole(response: httpx.Response) -> httpx.Response:
    """Read the answer whole. Raises `RequestRefused`."""
    body = bytearray()
    for piece in response.iter_raw():
        body += piece
        if len(body) > _MOST_BYTES:
            raise RequestRefused("", f"the answer is longer than {_MOST_BYTES} bytes: ask for less, or with --json")
    return httpx.Response(response.status_code, headers=response.headers, content=bytes(body))


def _refused(response: httpx.Response) -> RequestRefused:
    try:
        document = document_of(response)
        return RequestRefused(str(document["code"]), str(document["detail"]))
    except (ValueError, KeyError, TypeError):
        return RequestRefused("", f"HTTP {response.status_code}: {text_of(response)[:200]}")
