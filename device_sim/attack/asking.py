"""What bad clients ask of the enrolment service: enrolment, renewal, the operators' API; each answer as `Seen`.

Rules
-----
1. Whoever is asked for is noted first (`EnrolmentDesk.note`): the service may accept what it should refuse.
2. An answer is written as ``http <status> <code>``, with the service's own code; what was granted is ``http issued`` or
   the status alone.
"""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
from cryptography import x509

from device_sim.attack.desk import EnrolmentDesk
from device_sim.attack.issuer import Paper
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible
from device_sim.attack.verdict import ClosedBy, Layer, Seen
from provisioning.client.answer_body import problem_of, text_of
from provisioning.client.csr import build_csr
from provisioning.client.est import (
    EnrolmentPending,
    EnrolmentRefused,
    EnrolmentUnavailable,
    EstClient,
    WrongCertificate,
)
from provisioning.client.network_words import network_words
from provisioning.client.redirects import leave_unread_async
from provisioning.pki.certificate_message import certificates_in_message
from provisioning.pki.extension import UNUSABLE
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.serial_number import serial_text
from provisioning.pki.tls import CredentialPem, client_context

_SHOWN = 200
_LONGEST_CODE = 64
_NO_ANSWER = "unavailable"
UNAVAILABLE = f"http {_NO_ANSWER}"
"""The answer, as the catalogue would write it, of a service that is not reached, or cannot decide now."""


def desk_of(scene: Scene) -> EnrolmentDesk:
    """Return the target's enrolment service; raise `Impossible` if it has none."""
    if scene.target.desk is None:
        raise Impossible("there is no enrolment service beside this broker")
    return scene.target.desk


async def token_for(scene: Scene, name: str) -> str:
    """Return a one-time token for the device *name*."""
    return await desk_of(scene).token(name, scene.target.group)


def request_for(name: str, key: PrivateKey | None = None) -> x509.CertificateSigningRequest:
    """Return a request for *name*, with a new key if none is given."""
    return build_csr(key or generate_key(), name)


async def answered(attempt: Callable[[], Awaitable[x509.Certificate]]) -> Seen:
    """Return how the service answers *attempt*."""
    try:
        certificate = await attempt()
    except EnrolmentRefused as error:
        return Seen(Layer.HTTP, f"{error.status} {error.code}".strip(), error.detail, ClosedBy.NOBODY)
    except WrongCertificate as error:  # Whoever attacks would use it.
        certificate = error.certificate
    except EnrolmentPending as error:
        return Seen(Layer.HTTP, "202 PENDING", str(error), ClosedBy.NOBODY)
    except EnrolmentUnavailable as error:
        return Seen(Layer.HTTP, _NO_ANSWER, str(error), ClosedBy.NOBODY)
    return _issued(certificate)


async def enrols(
    scene: Scene, csr: x509.CertificateSigningRequest, user: str, token: str | None, label: str | None = None
) -> Seen:
    """Enrol *user* with *csr* and *token*, if any; *label* is the group asked for."""
    desk = desk_of(scene)
    desk.note(user)
    async with EstClient(desk.url, desk.anchors, trust_domain=desk.operator.trust_domain) as est:
        return await answered(lambda: est.enrol(csr, user=user, token=token, label=label))


async def renews(desk: EnrolmentDesk, paper: Paper, csr: x509.CertificateSigningRequest | None = None) -> Seen:
    """Renew *paper*; *csr* is the request, if not the right one."""
    asked = csr or build_csr(generate_key(), paper.name, paper.certificate)
    async with EstClient(desk.url, desk.anchors, paper.pem) as est:
        return await answered(lambda: est.reenrol(asked))


async def posts(scene: Scene, request: bytes, user: str, token: str) -> Seen:
    """Enrol with *request* unchanged: the client would refuse to send it."""
    desk = desk_of(scene)
    desk.note(user)
    async with _connected(desk) as client:
        answer = await client.post(
            f"{desk.url}/.well-known/est/simpleenroll",
            content=base64.b64encode(request),
            headers={"Content-Type": "application/pkcs10"},
            auth=httpx.BasicAuth(user, token),
        )
    if answer.status_code == httpx.codes.OK:
        return _granted(answer)
    return _seen(answer, text_of(answer).partition(":")[0])


async def calls(
    desk: EnrolmentDesk,
    pem: CredentialPem | None,
    path: str,
    body: Mapping[str, object] | None = None,
    *,
    method: str = "POST",
) -> Seen:
    """POST *body* to *path* of the operators' API, or GET it without one, with the credential *pem*, if any.

    The answer is not read to its end: what streams has none.
    """
    async with _connected(desk, pem) as client:
        method, content = ("GET", None) if body is None else (method, dict(body))
        async with client.stream(method, f"{desk.url}{path}", json=content) as answer:
            if not answer.is_success:
                await answer.aread()
            else:
                return Seen(Layer.HTTP, str(answer.status_code), "", ClosedBy.NOBODY, got_in=True)
    return _seen(answer, str((problem_of(answer) or {}).get("code", "")))


def open_client(**options: Any) -> httpx.AsyncClient:
    """Return a client for what is not asked as our own clients ask it, with httpx's *options*.

    It asks the address itself, whatever proxy the environment names, and reads no Location.
    """
    return httpx.AsyncClient(trust_env=False, event_hooks={"response": [leave_unread_async]}, **options)


@asynccontextmanager
async def _connected(desk: EnrolmentDesk, pem: CredentialPem | None = None) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of the service that checks nothing of what it sends; raise `EnrolmentUnavailable`."""
    try:
        async with open_client(verify=client_context(desk.anchors, pem, allow_tls12=True)) as client:
            yield client
    except httpx.HTTPError as error:
        raise EnrolmentUnavailable(f"{desk.url} gave no answer: {network_words(error)}") from error


async def short_lived(scene: Scene, life: timedelta) -> Paper:
    """Return a good device whose certificate, from the service, is valid for *life*, which may be over by then."""
    desk, name = desk_of(scene), scene.fresh()
    token = await desk.token(name, scene.target.group, life=int(life.total_seconds()))
    return await desk.enrolled(name, token, soon_over=True)


def _granted(answer: httpx.Response) -> Seen:
    """Return what the service grants by 200: a certificate, or whatever it says instead."""
    try:
        (certificate,) = certificates_in_message(base64.b64decode(answer.content))
    except UNUSABLE:
        return Seen(Layer.HTTP, "200", _text(answer), ClosedBy.NOBODY, got_in=True)
    return _issued(certificate)


def _issued(certificate: x509.Certificate) -> Seen:
    serial = f"serial {serial_text(certificate.serial_number)}"
    return Seen(Layer.HTTP, "issued", serial, ClosedBy.NOBODY, got_in=True)


def _seen(answer: httpx.Response, code: str) -> Seen:
    known = code if code.replace("_", "").isupper() and len(code) <= _LONGEST_CODE else ""
    return Seen(Layer.HTTP, f"{answer.status_code} {known}".strip(), _text(answer), ClosedBy.NOBODY)


def _text(answer: httpx.Response) -> str:
    return text_of(answer).strip()[:_SHOWN]
