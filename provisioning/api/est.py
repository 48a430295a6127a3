"""Enrolment over Secure Transport: RFC 7030 as clarified by RFC 8951, and nothing decided here.

Each route reads, calls the service, and writes. ``/.well-known/est`` works with and without one label, which is the
device's group (RFC 7030 §3.2.2); a label is never an operation's name.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from typing import Annotated, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, pkcs7
from fastapi import APIRouter, Request, Response
from fastapi import Path as PathParameter

from provisioning.api.peer import peer_certificate
from provisioning.enrolment.attempt import CertificateCredential, TokenCredential
from provisioning.enrolment.service import EnrolmentService
from provisioning.errors import Code, Refused
from provisioning.pki.identity import InvalidIdentity, check_name

PREFIX: Final = "/.well-known/est"
MAXIMUM_BODY: Final = 64 * 1024

_OPERATIONS: Final = frozenset({"cacerts", "simpleenroll", "simplereenroll", "csrattrs", "serverkeygen", "fullcmc"})
_CERTS_ONLY: Final = "application/pkcs7-mime; smime-type=certs-only"
_PKCS10: Final = "application/pkcs10"
_ARMOUR: Final = re.compile(rb"-----(BEGIN|END) [A-Z0-9 ]{1,40}-----")
_WHITE_SPACE: Final = b" \t\r\n"
_MAXIMUM_AUTHORIZATION: Final = 512

Label = Annotated[str, PathParameter(max_length=64)]


def est_routes(enrolment: EnrolmentService, authorities: Sequence[x509.Certificate]) -> APIRouter:
    """Return the EST routes; *authorities* is what ``/cacerts`` tells: root first, then the issuing CA."""
    router = APIRouter(prefix=PREFIX, include_in_schema=False)
    authority_answer = certs_only(authorities)

    @router.get("/cacerts")
    async def cacerts() -> Response:
        return Response(authority_answer, media_type=_CERTS_ONLY)

    @router.get("/{label}/cacerts")
    async def labelled_cacerts(label: Label) -> Response:
        check_label(label)
        return Response(authority_answer, media_type=_CERTS_ONLY)

    @router.post("/simpleenroll")
    async def simpleenroll(request: Request) -> Response:
        return await enrol(request, None)

    @router.post("/{label}/simpleenroll")
    async def labelled_simpleenroll(request: Request, label: Label) -> Response:
        return await enrol(request, check_label(label))

    @router.post("/simplereenroll")
    async def simplereenroll(request: Request) -> Response:
        return await reenrol(request, None)

    @router.post("/{label}/simplereenroll")
    async def labelled_simplereenroll(request: Request, label: Label) -> Response:
        return await reenrol(request, check_label(label))

    async def enrol(request: Request, label: str | None) -> Response:
        csr = await _read_csr(request)
        header, certificate = request.headers.get("authorization"), peer_certificate(request)
        # With nothing but a label, the group may still have a way: a listed key, an operator's approval.
        alone = header is None and (certificate is not None or label is not None)
        token = None if alone else parse_basic(header)
        return _issued(await enrolment.enrol(csr, token, label, certificate))

    async def reenrol(request: Request, label: str | None) -> Response:
        csr = await _read_csr(request)
        return _issued(await enrolment.reenrol(csr, CertificateCredential(peer_certificate(request)), label))

    return router


def certs_only(certificates: Sequence[x509.Certificate]) -> bytes:
    """Return a degenerate SignedData with *certificates*, in base64 (RFC 7030 §4.1.3)."""
    return base64.encodebytes(pkcs7.serialize_certificates(list(certificates), Encoding.DER))


def check_label(label: str) -> str:
    """Return *label* if it can be a group's name; raise `Refused` otherwise."""
    try:
        if label not in _OPERATIONS:
            return check_name("label", label)
    except InvalidIdentity:
        pass
    raise Refused(Code.NOT_FOUND, f"there is no EST label {label[:64]!r}")


def decode_body(body: bytes) -> bytes:
    """Return the DER in a base64 *body*; raise `Refused`.

    Spaces, tabs and line ends may be anywhere, PEM armour is taken off, Content-Transfer-Encoding is ignored
    (RFC 8951 §3.1); anything else that is not base64 is refused.
    """
    text = _ARMOUR.sub(b"", body).translate(None, _WHITE_SPACE)
    try:
        der = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise Refused(Code.BODY_ENCODING, f"the body is not the base64 of a DER request ({error})") from error
    if not der:
        raise Refused(Code.BODY_ENCODING, "the body is empty: send the request, base64 of its DER")
    return der


def parse_basic(header: str | None) -> TokenCredential:
    """Return the credential in an Authorization *header*; raise `Refused` if it is missing or unreadable."""
    if header is None:
        raise Refused(
            Code.TOKEN_MISSING, "authenticate with HTTP Basic: user = device name, password = enrolment token"
        )
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


async def _read_csr(request: Request) -> bytes:
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _PKCS10:
        raise Refused(Code.MEDIA_TYPE, f"Content-Type is {media_type[:80]!r}: send {_PKCS10}")
    return decode_body(await request.body())


def _issued(certificate: x509.Certificate) -> Response:
    return Response(certs_only([certificate]), media_type=_CERTS_ONLY)
