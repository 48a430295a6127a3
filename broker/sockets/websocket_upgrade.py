"""The HTTP request that becomes a WebSocket: the requirements of RFC 6455 §4.2.1 and of MQTT (MQTT 5 §6).

Theory
------
``bytes → h11 → request → Upgraded | Declined``. A declined client gets an HTTP answer that says in words what is wrong,
because it is read by a person with a browser, with curl, or with a library whose log shows the status and little else.
The broker's log says the same, and for a web page also which one.

Rules
-----
1. The request is bounded by h11's limit, and has no body.
2. No I/O. The answer repeats nothing of the request.

Does not handle: extensions (none is offered), several paths (any will do), which origins are allowed
(`broker.settings.origins`).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import h11
from wsproto.utilities import generate_accept_token

from broker.admission.refusal import RefusalCode
from broker.settings.origins import MOST_SHOWN, Origins

SUBPROTOCOL: Final = "mqtt"
_VERSION: Final = "13"
_NONCE_BYTES: Final = 16
_MQTT_CONNECT: Final = 0x10
_UPGRADE: Final = ((b"Upgrade", b"websocket"), (b"Connection", b"upgrade, close"))
_VERSIONS: Final = ((b"Sec-WebSocket-Version", _VERSION.encode()),)
_NOT_ALONE: Final = "this port speaks MQTT over WebSocket (wss://), not plain MQTT: use another port"
_NO_UPGRADE: Final = "this port speaks MQTT over WebSocket: 'Upgrade: websocket' and 'Connection: Upgrade' are needed"
_FOREIGN: Final = "web pages of this origin may not connect; websocket_origins of the broker names those that may"
_UNREADABLE: Final = {
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "the request is too long, by its cookies perhaps: 16 KiB at most",
    HTTPStatus.NOT_IMPLEMENTED: "an upgrade request has no body",
}
_Headers = Sequence[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The request is granted with *answer*; *rest* is what followed it: frames."""

    answer: bytes
    rest: bytes


@dataclass(frozen=True, slots=True)
class Declined:
    """The request is declined with *answer*; *recorded* is the reason for the operator."""

    answer: bytes
    code: RefusalCode
    recorded: str


@dataclass(frozen=True, slots=True)
class _Fault:
    """What is wrong with a request: the HTTP status, and a sentence with the remedy."""

    status: HTTPStatus
    why: str
    headers: _Headers = ()
    code: RefusalCode = RefusalCode.NOT_WEBSOCKET
    aside: str = ""
    """Additional details for the operator."""


class UpgradeRequest:
    """A request that is being received."""

    __slots__ = ("_begun", "_http", "_origins", "_request")

    def __init__(self, origins: Origins) -> None:
        self._begun = False
        self._origins = origins
        self._http = h11.Connection(h11.SERVER)
        self._request: h11.Request | None = None

    def receive(self, data: bytes) -> Upgraded | Declined | None:
        """Return the result for the request after *data*; None: it is not complete yet."""
        if not self._begun and data[0] == _MQTT_CONNECT:
            return self._decline(_bad(_NOT_ALONE))
        self._begun = True
        self._http.receive_data(data)
        try:
            event = self._http.next_event()
            if isinstance(event, h11.Request):
                self._request = event
                if (fault := _fault_of(event) or _foreign(event, self._origins)) is not None:
                    return self._decline(fault)
                event = self._http.next_event()
        except h11.RemoteProtocolError as error:
            status = HTTPStatus(error.error_status_hint)
            return self._decline(_Fault(status, _UNREADABLE.get(status, "this is not an HTTP/1.1 request")))
        if event is h11.NEED_DATA:
            return None
        if self._request is None or not isinstance(event, h11.EndOfMessage):
            return self._decline(_bad("an upgrade request has no body"))
        return self._grant(self._request)

    def _grant(self, request: h11.Request) -> Upgraded:
        (key,) = _values(request, b"sec-websocket-key")
        headers = [
            (b"Upgrade", b"websocket"),
            (b"Connection", b"Upgrade"),
            (b"Sec-WebSocket-Accept", generate_accept_token(key.encode())),
            (b"Sec-WebSocket-Protocol", SUBPROTOCOL.encode()),
        ]
        reason = HTTPStatus.SWITCHING_PROTOCOLS.phrase.encode()
        answer = self._http.send(h11.InformationalResponse(status_code=101, headers=headers, reason=reason))
        return Upgraded(answer or b"", self._http.trailing_data[0])

    def _decline(self, fault: _Fault) -> Declined:
        body = f"{fault.why}\n".encode()
        headers = [(b"Content-Type", b"text/plain"), (b"Content-Length", str(len(body)).encode()), *fault.headers]
        if not any(name == b"Connection" for name, _ in headers):
            headers.append((b"Connection", b"close"))
        reason = fault.status.phrase.encode()
        answer = self._http.send(h11.Response(status_code=fault.status, headers=headers, reason=reason)) or b""
        if self._request is None or self._request.method != b"HEAD":
            answer += self._http.send(h11.Data(data=body)) or b""
        return Declined(answer, fault.code, f"{fault.why}{fault.aside}")


def _fault_of(request: h11.Request) -> _Fault | None:
    """Return the first thing that makes *request* invalid as a WebSocket for MQTT; None: nothing."""
    if request.method != b"GET":
        return _Fault(HTTPStatus.METHOD_NOT_ALLOWED, "a WebSocket is opened with GET", ((b"Allow", b"GET"),))
    if request.http_version < b"1.1":
        return _bad("HTTP/1.1 is needed")
    try:
        hosts = _values(request, b"host")
        _values(request, b"origin")
        _values(request, b"sec-websocket-extensions")
        upgrades, options = _tokens(request, b"upgrade"), _tokens(request, b"connection")
        keys, versions = _values(request, b"sec-websocket-key"), _values(request, b"sec-websocket-version")
        subprotocols = _tokens(request, b"sec-websocket-protocol", fold=False)
    except UnicodeError:
        return _bad("a header is not text")
    if not hosts:  # h11 ensures it for HTTP/1.1, where there may be one; later versions of HTTP/1 get here.
        return _bad("a Host header is needed")
    if "websocket" not in upgrades or "upgrade" not in options:
        return _Fault(HTTPStatus.UPGRADE_REQUIRED, _NO_UPGRADE, _UPGRADE)
    if len(keys) != 1 or len(versions) != 1:  # RFC 6455 §11.3.1, §11.3.5
        return _bad("Sec-WebSocket-Key and Sec-WebSocket-Version are needed, once each", _VERSIONS)
    if versions[0] != _VERSION:  # RFC 6455 §4.2.2
        why = f"version {_VERSION} of WebSocket is needed: 'Sec-WebSocket-Version: {_VERSION}'"
        return _Fault(HTTPStatus.UPGRADE_REQUIRED, why, (*_UPGRADE, *_VERSIONS))
    if not _is_nonce(keys[0]):
        return _bad("Sec-WebSocket-Key is not 16 bytes in base64")
    if SUBPROTOCOL not in subprotocols:  # [MQTT-6.0.0-3]
        return _bad("the WebSocket subprotocol 'mqtt' is needed: 'Sec-WebSocket-Protocol: mqtt'")
    return None


def _foreign(request: h11.Request, origins: Origins) -> _Fault | None:
    """Return the fault of an otherwise valid *request* from a web page that may not connect; None: it may."""
    (host,), pages = _values(request, b"host"), _values(request, b"origin")  # h11 refuses a second Host.
    if len(pages) > 1:  # RFC 6454 §7.3
        return _bad("Origin may occur only once")
    if not pages or origins.admit(pages[0], host):
        return None
    aside = f" (Origin: {pages[0][:MOST_SHOWN]})"
    return _Fault(HTTPStatus.FORBIDDEN, _FOREIGN, code=RefusalCode.ORIGIN_NOT_ALLOWED, aside=aside)  # RFC 6455 §4.2.2


def _bad(why: str, headers: _Headers = ()) -> _Fault:
    return _Fault(HTTPStatus.BAD_REQUEST, why, headers)


def _values(request: h11.Request, name: bytes) -> list[str]:
    """Return the values of all headers called *name*. Raises UnicodeError if one is not ASCII."""
    return [value.decode("ascii") for key, value in request.headers if key == name]


def _tokens(request: h11.Request, name: bytes, *, fold: bool = True) -> list[str]:
    """Return the members of the list formed by all headers called *name*; *fold*: in lower case."""
    listed = ",".join(_values(request, name))
    return [token.strip() for token in (listed.lower() if fold else listed).split(",")]


def _is_nonce(key: str) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == _NONCE_BYTES
    except binascii.Error:
        return False
