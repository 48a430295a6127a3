"""Enrolment over Secure Transport: RFC 7030 as clarified by RFC 8951 and RFC 9908; it makes no decisions.

Each operation reads, calls the service, and writes. ``/.well-known/est`` works with and without one label, which is the
device's group (RFC 7030 §3.2.2); a label is never an operation's name.

Like OCSP, EST is an ASGI middleware in front of the framework: a device's request does not need pattern routing
and parameter validation, which cost a fifth of the event loop's work for an enrolment. One that
arrived complete even bypasses the ASGI interface (`provisioning.api.whole_requests`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from provisioning.api.closed_unread import is_closed_unread, without_text
from provisioning.api.peer import peer_certificate, tls_connection
from provisioning.api.request_text import decode_body
from provisioning.authorities.told_authorities import ToldAuthorities
from provisioning.ca.certificate_message import certificate_message
from provisioning.ca.key_envelope import EnvelopeSigner, seal_key
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.groups import NO_LABELS
from provisioning.enrolment.problems import pending_answer
from provisioning.enrolment.refusal_log import refusals_logged
from provisioning.enrolment.service import EnrolmentService, MadeKey
from provisioning.enrolment.vouching import nothing_shown
from provisioning.errors import Code, Pending, Refused
from provisioning.pki.identity import InvalidIdentity, check_name
from provisioning.quick_values import quickly_made

PREFIX: Final = "/.well-known/est"
OPERATIONS: Final = ("cacerts", "csrattrs", "simpleenroll", "simplereenroll", "serverkeygen")
MAXIMUM_BODY: Final = 64 * 1024

_BELOW: Final = f"{PREFIX}/"
_CERTS_ONLY: Final = "application/pkcs7-mime; smime-type=certs-only"
_AUTHORITIES: Final = "application/pkcs7-mime"  # RFC 7030 §4.1.3 has no parameter here, and clients compare.
_PKCS10: Final = "application/pkcs10"
_PKCS8: Final = "application/pkcs8"
_SEALED_KEY: Final = "application/pkcs7-mime; smime-type=server-generated-key"
_CSR_ATTRIBUTES: Final = "application/csrattrs"
_MAXIMUM_AUTHORIZATION: Final = 512
_TRANSFER_ENCODING: Final = {"Content-Transfer-Encoding": "base64"}
_CERTS_ONLY_HEADERS: Final = [(name.lower().encode(), value.encode()) for name, value in _TRANSFER_ENCODING.items()]
_CERTS_ONLY_TYPE: Final = (b"content-type", _CERTS_ONLY.encode())
_LINE: Final = re.compile(b".{1,76}")

Answer = Callable[[str, Refused, Mapping[str, str] | None], Response]
"""Makes the response for a path, a refusal and headers."""


@dataclass(frozen=True, slots=True)
class _Operation:
    """One operation; *path* is its label in `provisioning.api.metrics`."""

    methods: Sequence[str]
    path: str
    answer: Callable[[EstRequest, str | None], Awaitable[Response]]


@quickly_made
@dataclass(frozen=True, slots=True)
class EstRequest:
    """A request, with its body."""

    scope: Scope
    body: bytes

    def header(self, name: bytes) -> str | None:
        """Return the first header called *name*, in lower case, None without one."""
        for each, value in self.scope["headers"]:
            if each == name:
                found: bytes = value
                return found.decode("latin-1")
        return None


class EstEndpoint:
    """Answers EST's operations under `PREFIX`; passes everything else to the application behind it."""

    def __init__(self, app: ASGIApp, *, responder: EstResponder) -> None:
        self._app = app
        self._responder = responder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or not self._responder.knows(scope["path"]):
            await self._app(scope, receive, send)
            return
        # `BodyLimit` has read it whole.
        body = (await receive())["body"] if scope["method"] == "POST" else b""
        response = await self._responder.respond(scope, body)
        await response(scope, receive, send)


class EstResponder:
    """Answers requests for EST's operations, complete or in pieces."""

    def __init__(
        self,
        answer: Answer,
        *,
        enrolment: EnrolmentService,
        authorities: ToldAuthorities,
        signer: Callable[[], EnvelopeSigner],
    ) -> None:
        """Publish *authorities* as ``/cacerts``. *signer* loads the credential that signs encrypted keys."""
        self._answer = answer
        operations = _Operations(enrolment, authorities, signer)
        self._unlabelled: dict[str, tuple[_Operation, None]] = {}
        """By the whole path."""
        self._labelled: dict[str, _Operation] = {}
        reading, asking = ("GET", "HEAD"), ("POST",)  # A server that answers GET answers HEAD (RFC 9110 §9.1).
        for methods, operation in (
            (reading, operations.cacerts),
            (reading, operations.csrattrs),
            (asking, operations.simpleenroll),
            (asking, operations.simplereenroll),
            (asking, operations.serverkeygen),
        ):
            name = operation.__name__
            path = f"{PREFIX}/{name}"
            self._unlabelled[path] = _Operation(methods, path, operation), None
            self._labelled[name] = _Operation(methods, f"{PREFIX}/{{label}}/{name}", operation)

    def knows(self, path: str) -> bool:
        """Whether *path* names an operation."""
        return self._named(path)[0] is not None

    async def respond(self, scope: Scope, body: bytes) -> Response:
        """Return the answer to a request for an operation that is known."""
        path, method = scope["path"], scope["method"]
        operation, label = self._named(path)
        if operation is None:
            raise AssertionError("it is asked for what it knows")
        scope["route"] = operation
        if method not in operation.methods:
            allowed = ", ".join(operation.methods)
            detail = f"{method} {path[:120]}: send {allowed}"
            return self._answer(path, Refused(Code.METHOD_NOT_ALLOWED, detail), {"Allow": allowed})
        try:
            return await operation.answer(EstRequest(scope, body), None if label is None else check_label(label))
        except Refused as refusal:
            response = self._answer(path, refusal, None)
        except Pending as waiting:
            response = pending_answer(waiting)
        return without_text(response) if is_closed_unread(response.status_code, dict(scope["headers"])) else response

    def _named(self, path: str) -> tuple[_Operation | None, str | None]:
        """Return the operation that *path* names, if it does, and the label, if there is one."""
        if (unlabelled := self._unlabelled.get(path)) is not None:
            return unlabelled
        if not path.startswith(_BELOW):
            return None, None
        match path[len(_BELOW) :].split("/"):
            case [label, name]:
                return self._labelled.get(name), label
            case _:
                return None, None


class _Operations:
    """EST's operations, each under its own name; *label* is the group that the URL names, if it does."""

    def __init__(
        self, enrolment: EnrolmentService, authorities: ToldAuthorities, signer: Callable[[], EnvelopeSigner]
    ) -> None:
        self._enrolment = enrolment
        self._authorities = authorities
        self._signer = signer

    async def cacerts(self, _request: EstRequest, label: str | None) -> Response:
        authorities = self._authorities
        if label is None or authorities.one_line:
            told: Sequence[x509.Certificate] = authorities.everything
        else:
            told = authorities.of_line(await self._enrolment.issuing_line(label))
        return _in_base64(certs_only(told), _AUTHORITIES)

    async def csrattrs(self, _request: EstRequest, label: str | None) -> Response:
        attributes = await self._enrolment.csr_attributes(label)
        return _in_base64(base64.encodebytes(attributes), _CSR_ATTRIBUTES)

    async def simpleenroll(self, request: EstRequest, label: str | None) -> Response:
        connection = tls_connection(request.scope)
        with refusals_logged(connection):
            csr = _read_csr(request)
            token, certificate = _presented(request, label)
        return _issued(await self._enrolment.enrol(csr, token, label, certificate, connection))

    async def simplereenroll(self, request: EstRequest, label: str | None) -> Response:
        connection = tls_connection(request.scope)
        with refusals_logged(connection):
            csr = _read_csr(request)
            certificate = peer_certificate(request.scope)
        return _issued(await self._enrolment.reenrol(csr, certificate, label, connection))

    async def serverkeygen(self, request: EstRequest, label: str | None) -> Response:
        connection = tls_connection(request.scope)
        with refusals_logged(connection):
            csr = _read_csr(request)
            token, certificate = _presented(request, label)
        made = await self._enrolment.enrol_with_server_key(csr, token, label, certificate, connection)
        part = await asyncio.to_thread(_key_part, made, self._signer)
        return _key_and_certificate(part, made.certificate)


class _IssuedResponse(Response):
    """What `_in_base64` returns for a certificate, without the library's steps from any header to its octets."""

    def __init__(self, body: bytes) -> None:
        self.status_code = HTTPStatus.OK.value
        self.background = None
        self.body = body
        self.raw_headers = [*_CERTS_ONLY_HEADERS, (b"content-length", b"%d" % len(body)), _CERTS_ONLY_TYPE]


def certs_only(certificates: Sequence[x509.Certificate]) -> bytes:
    """Return a degenerate SignedData with *certificates*, in base64 (RFC 7030 §4.1.3)."""
    return base64.encodebytes(certificate_message(*(each.public_bytes(Encoding.DER) for each in certificates)))


def check_label(label: str) -> str:
    """Return *label* if it can be a group's name; raise `Refused` otherwise."""
    try:
        if label not in NO_LABELS:
            return check_name("label", label)
    except InvalidIdentity:
        pass
    raise Refused(Code.NOT_FOUND, f"there is no EST label {label[:64]!r}")


def parse_basic(header: str | None) -> TokenCredential:
    """Return the credential in an Authorization *header*; raise `Refused` if it is missing or unreadable."""
    if header is None:
        raise nothing_shown()
    scheme, _, encoded = header[:_MAXIMUM_AUTHORIZATION].partition(" ")
    try:
        user, _, token = base64.b64decode(encoded.strip(), validate=True).decode("utf-8").partition(":")
    except ValueError:
        user, token = "", ""
    if scheme.lower() != "basic" or not (user and token):
        raise Refused(
            Code.TOKEN_MISSING, "the Authorization header is not HTTP Basic with the device's name and a token"
        )
    return TokenCredential(user, token)


def _presented(request: EstRequest, label: str | None) -> tuple[TokenCredential | None, x509.Certificate | None]:
    header, certificate = request.header(b"authorization"), peer_certificate(request.scope)
    # With nothing but a label, the group may still have a way: a listed key, an operator's approval.
    alone = header is None and (certificate is not None or label is not None)
    return None if alone else parse_basic(header), certificate


def _read_csr(request: EstRequest) -> bytes:
    media_type = (request.header(b"content-type") or "").partition(";")[0].strip().lower()
    if media_type != _PKCS10:
        raise Refused(Code.MEDIA_TYPE, f"Content-Type is {media_type[:80]!r}: send {_PKCS10}")
    return decode_body(request.body)


def _issued(certificate: bytes) -> Response:
    return _IssuedResponse(_lines_of_base64(certificate_message(certificate)))


def _in_base64(body: bytes, media_type: str) -> Response:
    """Return an answer that says that it is in base64: who knows RFC 8951 (§3) reads past it, older clients need it."""
    return Response(body, media_type=media_type, headers=_TRANSFER_ENCODING)


def _lines_of_base64(content: bytes) -> bytes:
    """Return what `base64.encodebytes` does, which encodes each line by itself."""
    return b"\n".join(_LINE.findall(binascii.b2a_base64(content))) + b"\n"


def _key_part(made: MadeKey, signer: Callable[[], EnvelopeSigner]) -> tuple[str, bytes]:
    """Return the media type and the body of the key's part: encrypted if that was asked for."""
    if made.recipient is not None:
        return _SEALED_KEY, base64.encodebytes(seal_key(made.key, made.recipient, signer()))
    return _PKCS8, base64.encodebytes(made.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))


def _key_and_certificate(key_part: tuple[str, bytes], certificate: x509.Certificate) -> Response:
    """Return the two parts of RFC 7030 §4.4.2. The key is in no cache: the answer must not be stored."""
    boundary = secrets.token_hex(16)
    parts = (key_part, (_CERTS_ONLY, certs_only([certificate])))
    lines = b"".join(
        f"--{boundary}\r\nContent-Type: {kind}\r\nContent-Transfer-Encoding: base64\r\n\r\n".encode() + body + b"\r\n"
        for kind, body in parts
    )
    return Response(
        lines + f"--{boundary}--\r\n".encode(),
        media_type=f'multipart/mixed; boundary="{boundary}"',
        headers={"Cache-Control": "no-store"},
    )
