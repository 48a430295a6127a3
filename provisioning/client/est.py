"""EST client (RFC 7030, as clarified by RFC 8951): how a device or a broker gets and renews its certificate.

Rules
-----
1. One `EstClient` is one pool of kept-alive connections; any number of devices without a certificate may enrol
   through it, as each request authenticates itself. A renewal authenticates by the client certificate of the pool.
2. The answer is accepted only if it holds exactly one certificate, for the key and the name that were sent, and in a
   renewal for the identity; and only if that has not ended. Whoever gets another keeps what works: another would take
   the place of the present one, and its holder could neither connect nor renew.
3. Before anything is sent, the service proves that its certificate is not revoked:
   `provisioning.client.genuine_server`. That needs its CA's key, as enrolment does: if the service can enrol a device,
   it also has the proof.
4. Two errors, by what the caller can do: `EnrolmentRefused`, change the request; `EnrolmentUnavailable`, retry later.

Handles: cacerts, csrattrs, simpleenroll, simplereenroll, renewal information (RFC 9773), Retry-After. Does not handle:
retries and their pauses (the caller's), provisional trust (RFC 7030 §4.1.1: the trust anchors come out of band),
serverkeygen (keys stay where they are made).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from provisioning.client.answer_body import document_of, text_of
from provisioning.client.connection import DEFAULT_CONNECTIONS, explain, open_pool
from provisioning.client.genuine_server import Refuse
from provisioning.client.whole_answer import ask
from provisioning.pki.certificate_message import certificates_in_message
from provisioning.pki.extension import UNREADABLE, UNUSABLE, extension
from provisioning.pki.identity import SCHEME, check_name, identity_of
from provisioning.pki.tls import Credential
from provisioning.program.moments import shown_minute

_PKCS10 = "application/pkcs10"
_PKCS7 = "application/pkcs7-mime"
_CSR_ATTRIBUTES = "application/csrattrs"
_NO_ATTRIBUTES = frozenset({httpx.codes.NO_CONTENT, httpx.codes.NOT_FOUND})
_LONGEST_TEXT = 500
_LONGEST_WAIT = 86_400.0
"""In seconds, whatever the service asks for: a device that waited for longer would let its certificate expire."""
_SHORTEST_POLL = 60.0
"""In seconds, between questions about renewal (RFC 9773 §4.3.2)."""


class EnrolmentRefused(Exception):
    """The service refused the request; repeating it unchanged will not help."""

    def __init__(self, status: int, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}" if code else detail)
        self.status = status
        self.code = code
        self.detail = detail


class EnrolmentUnavailable(Exception):
    """The service cannot be reached, cannot decide now, or answers invalidly; *retry_after* is its request, in s."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class EnrolmentPending(EnrolmentUnavailable):
    """An operator has not decided yet (202, RFC 7030 §4.2.3): repeat the request with the same key."""


class WrongCertificate(EnrolmentUnavailable):
    """The service has certified the key, but not what was asked for: *certificate*, which nobody should use."""

    def __init__(self, reason: str, certificate: x509.Certificate) -> None:
        super().__init__(reason)
        self.certificate = certificate


@dataclass(frozen=True, slots=True)
class RenewalInfo:
    """The window for renewing a certificate, at a moment chosen at random; ask again after *retry_after* s."""

    start: datetime
    end: datetime
    retry_after: float | None = None


class EstClient:
    """A client of the EST service at *base_url*, trusted by *anchors* (PEM file or text).

    *credential* is the certificate to renew, or the claim's or manufacturer's certificate to enrol with. *trust_domain*
    names the fleet whose service it must be; None: the one in *credential*, or any if that names none. *refuse* is
    what else is known against a server (`provisioning.client.genuine_server`).
    """

    def __init__(
        self,
        base_url: str,
        anchors: Path | str,
        credential: Credential | None = None,
        *,
        connections: int = DEFAULT_CONNECTIONS,
        trust_domain: str | None = None,
        refuse: Refuse | None = None,
    ) -> None:
        self._base_url = base_url
        self._pool = open_pool(
            base_url, anchors, credential, connections=connections, trust_domain=trust_domain, refuse=refuse
        )

    async def __aenter__(self) -> Self:
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._pool.__aexit__(kind, error, trace)

    async def ca_certificates(self) -> list[x509.Certificate]:
        """Return the service's CA certificates, in the order in which it sends them."""
        return self._certificates(await self._request("GET", "cacerts", label=None))

    async def enrol(
        self,
        csr: x509.CertificateSigningRequest,
        *,
        user: str | None = None,
        token: str | None = None,
        label: str | None = None,
    ) -> x509.Certificate:
        """Return the first certificate for *csr*; *user* is the device's name, *label* the group, if any.

        Without a token the client's credential authenticates (a claim's, a manufacturer's certificate), or nothing
        does. While an operator has not decided, `EnrolmentPending.retry_after` says when to repeat the request.
        """
        auth = None if user is None or token is None else httpx.BasicAuth(user, token)
        return await self._enrol("simpleenroll", csr, label=label, auth=auth)

    async def reenrol(self, csr: x509.CertificateSigningRequest) -> x509.Certificate:
        """Return the certificate that replaces the one this client authenticates with."""
        return await self._enrol("simplereenroll", csr, label=None, auth=None)

    async def csr_attributes(self, label: str | None = None) -> bytes:
        """Return the requested CSR contents: DER of CsrAttrs (RFC 7030 §4.5.2), empty if there are none."""
        response = await self._request("GET", "csrattrs", label=label, allowed=_NO_ATTRIBUTES)
        if response.status_code in _NO_ATTRIBUTES:
            return b""
        return self._decoded(response, _CSR_ATTRIBUTES)

    async def renewal_info(self, certificate: x509.Certificate) -> RenewalInfo:
        """Return when *certificate* should be renewed. Renew when the service says so, not at a time of your own."""
        try:
            response = await ask(self._pool, "GET", f"/v1/renewal-info/{renewal_identifier(certificate)}")
        except httpx.HTTPError as error:
            raise EnrolmentUnavailable(explain(self._base_url, error)) from error
        if response.status_code != httpx.codes.OK:
            raise _refusal(response)
        return self._renewal_window(response)

    def _renewal_window(self, response: httpx.Response) -> RenewalInfo:
        try:
            given = document_of(response)["suggestedWindow"]
            start, end = (_moment_of(given[name]) for name in ("start", "end"))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise EnrolmentUnavailable(f"{self._base_url} sent no readable renewal information") from error
        if end < start:
            raise EnrolmentUnavailable(f"{self._base_url} sent renewal information that is no window")
        again = _retry_after(response)
        return RenewalInfo(start, end, None if again is None else max(again, _SHORTEST_POLL))

    async def _enrol(
        self, operation: str, csr: x509.CertificateSigningRequest, *, label: str | None, auth: httpx.BasicAuth | None
    ) -> x509.Certificate:
        body = base64.b64encode(csr.public_bytes(serialization.Encoding.DER))
        response = await self._request("POST", operation, label=label, body=body, auth=auth)
        certificates = self._certificates(response)
        try:
            is_ours = len(certificates) == 1 and certificates[0].public_key() == csr.public_key()
        except UNUSABLE:  # Of a key of another kind.
            is_ours = False
        if not is_ours:
            raise EnrolmentUnavailable(
                f"the provisioning service at {self._base_url} answered {operation} with {len(certificates)} "
                "certificates, none or not only the one for the key that was sent"
            )
        if (wrong := _wrong_with(certificates[0], csr, renewed=operation == "simplereenroll")) is not None:
            raise WrongCertificate(
                f"the provisioning service at {self._base_url} answered {operation} with a certificate that nobody "
                f"asked for: {wrong}",
                certificates[0],
            )
        return certificates[0]

    async def _request(
        self,
        method: str,
        operation: str,
        *,
        label: str | None,
        body: bytes | None = None,
        auth: httpx.BasicAuth | None = None,
        allowed: Collection[int] = (),
    ) -> httpx.Response:
        path = f"/{check_name('label', label)}" if label is not None else ""
        headers = {"Content-Type": _PKCS10} if body is not None else {}
        try:
            response = await ask(
                self._pool, method, f"/.well-known/est{path}/{operation}", content=body, headers=headers, auth=auth
            )
        except httpx.HTTPError as error:
            raise EnrolmentUnavailable(explain(self._base_url, error)) from error
        if response.status_code == httpx.codes.OK or response.status_code in allowed:
            return response
        raise _refusal(response)

    def _decoded(self, response: httpx.Response, expected: str) -> bytes:
        kind = response.headers.get("Content-Type", "")
        if kind.partition(";")[0].strip().lower() != expected:
            raise EnrolmentUnavailable(f"{self._base_url} is no EST service: it answered 200 with {kind!r}")
        try:
            # RFC 8951 §3.1: base64 with or without line breaks; any Content-Transfer-Encoding is ignored.
            return base64.b64decode(b"".join(response.content.split()), validate=True)
        except binascii.Error as error:
            raise EnrolmentUnavailable(f"{self._base_url} sent an answer that is not base64: {error}") from error

    def _certificates(self, response: httpx.Response) -> list[x509.Certificate]:
        try:
            return certificates_in_message(self._decoded(response, _PKCS7))
        except UNUSABLE as error:
            raise EnrolmentUnavailable(
                f"the provisioning service at {self._base_url} sent no readable certificate: {error}"
            ) from error


def _wrong_with(certificate: x509.Certificate, csr: x509.CertificateSigningRequest, *, renewed: bool) -> str | None:
    """Return in what *certificate* is not the one that *csr* asks for; None: in nothing.

    A first request asks for a name: the service decides on role and group. The *renewed* one keeps them.
    """
    try:
        found, end = identity_of(certificate), certificate.not_valid_after_utc
    except UNREADABLE as error:  # `InvalidIdentity` is one of them.
        return str(error)
    if [each.value for each in csr.subject.get_attributes_for_oid(NameOID.COMMON_NAME)] != [found.name]:
        return f"it is that of {found.uri}"
    names = extension(csr, x509.SubjectAlternativeName) or x509.SubjectAlternativeName([])
    asked = [each for each in names.get_values_for_type(x509.UniformResourceIdentifier) if each.startswith(SCHEME)]
    if renewed and asked and asked != [found.uri]:
        return f"it is that of {found.uri}, not of {', '.join(asked)}"
    if end <= datetime.now(UTC):
        return f"it has ended on {shown_minute(end)}"
    return None


def _moment_of(text: str) -> datetime:
    """Return the time *text*, in UTC, in which not every time of another zone has its place (OverflowError)."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text} has no time zone")
    return moment.astimezone(UTC)


def renewal_identifier(certificate: x509.Certificate) -> str:
    """Return the RFC 9773 §4.1 identifier of *certificate*, which must have an Authority Key Identifier."""
    issuer = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier or b""
    serial = certificate.serial_number
    number = serial.to_bytes(serial.bit_length() // 8 + 1)  # As in DER: a zero octet first if the sign bit is set.
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (issuer, number))


def _refusal(response: httpx.Response) -> EnrolmentRefused | EnrolmentUnavailable:
    text = " ".join(text_of(response).split())[:_LONGEST_TEXT] or response.reason_phrase
    status = response.status_code
    if status == httpx.codes.ACCEPTED:
        return EnrolmentPending(f"the provisioning service answered {status}: {text}", _retry_after(response))
    if status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        return EnrolmentUnavailable(f"the provisioning service answered {status}: {text}", _retry_after(response))
    code, separator, detail = text.partition(": ")
    if not separator or not code.replace("_", "").isupper():
        code, detail = "", text
    return EnrolmentRefused(status, code, detail)


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return min(float(value), _LONGEST_WAIT) if value.isascii() and value.isdecimal() else None
