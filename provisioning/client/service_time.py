"""The time, obtained from the device's own fleet: for a device that has no clock, or a wrong one.

Theory
------
A device without a clock starts in 1970, when no certificate is valid yet, so it cannot enrol; and if it ignored dates,
anyone with the key of an expired certificate could pose as the service. NTP gives the time, but anyone on the path can
answer it (RFC 8915 is the exception). The fleet's own CA cannot be impersonated: its OCSP responder's answer to a
request with a nonce was signed after the request was made (RFC 9654), so the time in it has come. With that time all
validity checks are made: of the path from the service's certificate to the pinned anchors, and of the responder's. Then
the device sets its clock, and enrols as others do; nothing here happens without an explicit call.

Rules
-----
1. No clock is read. Nothing is sent to the service, and nothing is accepted from it except its certificates.
2. A response counts if it repeats the nonce, is signed by the CA that certified the service or by a responder delegated
   by it, and says that the service's certificate is good.
3. The time is not earlier than the device knows for certain (*at_least*): its firmware's date, or the last stored time.
4. An address of the service that does not answer costs a quarter of a second, if its name has others (RFC 8305): anyio
   connects, as it does for the other clients, below httpx. asyncio's streams would wait for the first one alone.

Handles: attackers on the path to the service or its responder, with anything they have recorded. Does not handle: an
attacker with the key of an OCSP signer, of a few days' life, or of a CA, *and* that of a certificate of the service:
such an attacker can claim a time when those were valid.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import anyio
from anyio.streams.tls import TLSAttribute
from cryptography import x509
from cryptography.x509 import ocsp

from provisioning.client.address import misnamed
from provisioning.client.genuine_server import genuine_server
from provisioning.client.network_backend import GONE
from provisioning.client.plain_http import OK, AnswerRefused, HttpFailed, PlainHttp, body_of
from provisioning.pki.extension import UNREADABLE
from provisioning.pki.ocsp import OcspRefused, Question, ask, read_answer, responders
from provisioning.pki.panic import NoPanic
from provisioning.pki.tls import TlsConfigurationError, client_context
from provisioning.pki.verified_path import verified_path
from provisioning.program.moments import shown_minute

_HTTPS: Final = 443
_WITH_ISSUER: Final = 2
_MOST_ANSWER: Final = 64 * 1024
_HEADERS: Final = {"Content-Type": "application/ocsp-request"}


class TimeUnknown(Exception):
    """No trustworthy source has given the time; the text says why."""


async def service_time(
    base_url: str,
    anchors: Path | str,
    *,
    trust_domain: str | None = None,
    at_least: datetime | None = None,
    responder: str | None = None,
    patience: float = 10.0,
) -> datetime:
    """Return the time of the fleet's CA, to the second; some seconds late if the network is slow.

    *anchors* are the device's trust anchors for its service, at *base_url*; *trust_domain* names the fleet
    whose service it must be, if known. *at_least* is a time that has certainly passed. *responder* is asked, or,
    without it, those in the service's certificate. The service and its responder have *patience* seconds each.
    Raises `TimeUnknown`, and `provisioning.pki.tls.TlsConfigurationError` if a file, or the address, cannot be used.
    """
    if (wrong := misnamed(base_url)) is not None:
        raise TlsConfigurationError(wrong)
    path = await _path_of(base_url, anchors, trust_domain, patience)
    if len(path) < _WITH_ISSUER:
        raise TimeUnknown(f"the certificate of {base_url} is itself a trust anchor: there is no CA to ask for the time")
    own, issuer = path[:_WITH_ISSUER]
    question = ask(own.serial_number, issuer)
    urls = responders(own) if responder is None else (responder,)
    now = told(await _answer_to(question, urls, patience), question, path)
    if at_least is not None and now < at_least:
        raise TimeUnknown(f"the OCSP responder says {shown_minute(now)}, but {shown_minute(at_least)} has passed")
    return now


def told(response: bytes, question: Question, path: Sequence[x509.Certificate]) -> datetime:
    """Return the time that the OCSP *response* to *question* proves.

    *path* leads from the service's certificate, the subject of the question, to an anchor. Raises `TimeUnknown`.
    """
    own, issuer = path[:_WITH_ISSUER]
    try:
        with NoPanic():
            read = ocsp.load_der_ocsp_response(response)
            now = read.produced_at_utc
            nonce = read.extensions.get_extension_for_class(x509.OCSPNonce).value.nonce
        if nonce != question.nonce:
            raise TimeUnknown("the OCSP response is for another request")
        answer = read_answer(response, question, own.serial_number, issuer, now)
    except x509.ExtensionNotFound:
        raise TimeUnknown("the OCSP response has no nonce: it may be an old one") from None
    except (OcspRefused, *UNREADABLE) as error:
        raise TimeUnknown(f"the OCSP response cannot be trusted: {error}") from error
    if not answer.known or answer.reason is not None:
        why = "its CA does not know it" if not answer.known else f"it is revoked ({answer.reason})"
        raise TimeUnknown(f"the certificate of the service is not good: {why}")
    for each in path:
        if not each.not_valid_before_utc <= now <= each.not_valid_after_utc:
            name = each.subject.rfc4514_string()
            raise TimeUnknown(
                f"the OCSP responder says {shown_minute(now)}, but the certificate of {name} is valid from "
                f"{shown_minute(each.not_valid_before_utc)} to {shown_minute(each.not_valid_after_utc)}"
            )
    return now


async def _path_of(
    base_url: str, anchors: Path | str, trust_domain: str | None, patience: float
) -> list[x509.Certificate]:
    """Return the path from the service's certificate to an anchor, whatever its dates."""
    parts = urlsplit(base_url)
    context = client_context(anchors, allow_tls12=True, caller_checks_dates=True)
    context.sslobject_class = genuine_server(trust_domain)
    host, port = parts.hostname or "", parts.port or _HTTPS
    try:
        async with asyncio.timeout(patience):
            connected = await anyio.connect_tcp(host, port, ssl_context=context, tls_standard_compatible=False)
    except anyio.EndOfStream as error:
        raise TimeUnknown(f"the service at {base_url} cannot be asked: it ends the connection") from error
    except (OSError, TimeoutError, ssl.SSLError, anyio.BrokenResourceError, UnicodeError) as error:
        # UnicodeError: no name of DNS.
        why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else _first_of(error)
        raise TimeUnknown(f"the service at {base_url} cannot be asked: {why or 'it takes too long'}") from error
    try:
        presented = connected.extra_attributes[TLSAttribute.ssl_object]()
        return [x509.load_der_x509_certificate(each) for each in verified_path(presented)]
    except GONE as error:
        raise TimeUnknown(f"the service at {base_url} cannot be asked: it resets the connection") from error
    except UNREADABLE as error:  # OpenSSL reads more than this library.
        raise TimeUnknown(f"the certificate of {base_url}, or that of its CA, cannot be read: {error}") from error
    finally:
        await anyio.aclose_forcefully(connected)


async def _answer_to(question: Question, urls: Sequence[str], patience: float) -> bytes:
    """Return the response of the first of the responders at *urls* that answers."""
    why = "the service's certificate names no OCSP responder: give one"
    http = PlainHttp(patience)
    try:
        for url in urls:
            try:
                async with asyncio.timeout(patience), http.asked("POST", url, _HEADERS, question.der) as response:
                    if response.status_code == OK:
                        return await body_of(response, _MOST_ANSWER)
                    why = f"the OCSP responder at {url} answered {response.status_code}"
            except (HttpFailed, AnswerRefused, TimeoutError) as error:
                why = f"the OCSP responder at {url} cannot be asked: {str(error) or 'it takes too long'}"
    finally:
        await http.close()
    raise TimeUnknown(why)


def _first_of(error: Exception) -> str:
    """Return what is wrong; of several addresses that were tried in vain, with the first."""
    cause = error.__cause__ or error
    return str(cause.exceptions[0] if isinstance(cause, ExceptionGroup) else cause)
