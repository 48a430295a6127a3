"""Case 45, continued: what the enrolment service publishes of a revocation, on its CRL and by OCSP.

A broker of ours learns of revocations from the feed. Other programs only have these two.

Rules
-----
1. Where to ask is in the certificate (RFC 5280 §4.2.1.13, §4.2.2.1); of a service that we have started, it is known.
2. An answer counts if it is signed as it must be (RFC 5280 §6.3, RFC 6960 §3.2).
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import httpx
from cryptography import x509

from device_sim.attack.asking import open_client
from device_sim.attack.capabilities import Feature
from device_sim.attack.case import Chapter
from device_sim.attack.desk import EnrolmentDesk
from device_sim.attack.issuer import Paper
from device_sim.attack.scene import Scene
from device_sim.attack.target import BrokenPromise, Impossible
from device_sim.attack.verdict import ClosedBy, Layer, Seen
from provisioning.client.network_words import network_words
from provisioning.pki.crl import CrlRefused, distribution_points, parse, verify
from provisioning.pki.extension import extension
from provisioning.pki.ocsp import OcspRefused, ask, read_answer, responders
from provisioning.pki.serial_number import serial_text

_REVOKED = "revoked"
_PUBLISHED = f"http {_REVOKED}"
_NEEDS = (Feature.REVOCATION,)
_GOOD, _UNKNOWN = "good", "unknown"
_LATEST = 30.0
"""Seconds in which a revocation must be on the CRL: the service collects changes for a moment before it signs."""
_LOOK_AGAIN = 0.1
_TIMEOUT = 10.0
_OCSP = {"Content-Type": "application/ocsp-request"}

chapter = Chapter()


async def _fetched(method: str, url: str, **options: Any) -> httpx.Response:
    """Return the answer; raise `Impossible` if *url* is not reached from here: others may reach it."""
    try:
        async with open_client(timeout=_TIMEOUT) as client:
            return await client.request(method, url, **options)
    except httpx.HTTPError as error:
        raise Impossible(f"{url} is not reached from here: {network_words(error)}") from error


async def _is_listed(desk: EnrolmentDesk, scene: Scene, paper: Paper) -> bool:
    """Whether the CRL lists *paper*; raises as `_list`."""
    crl = await _list(desk, scene, paper)
    return crl.get_revoked_certificate_by_serial_number(paper.certificate.serial_number) is not None


async def _list(desk: EnrolmentDesk, scene: Scene, paper: Paper) -> x509.CertificateRevocationList:
    """Return the CRL; raise `BrokenPromise` if it is not a CRL of the CA, `Impossible` without a CRL."""
    named = next(iter(distribution_points(paper.certificate)), "")
    url = f"{desk.relying_url}/crl/issuing-ca.crl" if desk.relying_url else named
    if not url.startswith("http://"):
        raise Impossible("certificates of this service name no CRL (public_http_url is not set)")
    answer = await _fetched("GET", url)
    try:
        content = answer.raise_for_status().content
        verify(parse(content), scene.target.ca_certificate)
        return x509.load_der_x509_crl(content)  # With its entries.
    except (httpx.HTTPStatusError, CrlRefused, ValueError) as error:
        raise BrokenPromise(f"{url} gives no CRL of the CA: {error}") from error


async def _responder_says(
    desk: EnrolmentDesk, scene: Scene, paper: Paper, *, nonce: bool, serial: int | None = None
) -> str:
    """Return *good*, *revoked* or *unknown*, for *paper* or another *serial* number of its CA.

    Raises `BrokenPromise` if the answer is none, `Impossible` without one.
    """
    named = next(iter(responders(paper.certificate)), "")
    url = f"{desk.relying_url}/ocsp" if desk.relying_url else named
    if not url.startswith("http://"):
        raise Impossible("certificates of this service name no OCSP responder (public_http_url is not set)")
    issuer = scene.target.ca_certificate
    serial = paper.certificate.serial_number if serial is None else serial
    question = ask(serial, issuer, nonce=nonce)
    answer = await _fetched("POST", url, content=question.der, headers=_OCSP)
    try:
        status = read_answer(answer.content, question, serial, issuer, datetime.now(UTC))
    except OcspRefused as error:
        raise BrokenPromise(f"{url} gives no OCSP response: {error}") from error
    if not status.known:
        return _UNKNOWN
    return _GOOD if status.reason is None else _REVOKED


@chapter.case("45-on-crl", "is revoked, and looked up on the CRL", _PUBLISHED, needs=_NEEDS, limit=lambda _: _LATEST)
async def _on_the_crl(scene: Scene) -> Seen:
    desk, paper = _publishing(scene), await scene.device()
    if await _is_listed(desk, scene, paper):
        raise BrokenPromise("a good device is on the CRL")
    await scene.target.registrar.revoke(paper)
    started = time.monotonic()
    while not await _is_listed(desk, scene, paper):
        if time.monotonic() > started + _LATEST:
            raise BrokenPromise(f"{_LATEST:.0f} s after its revocation the device is not on the CRL", never=True)
        await asyncio.sleep(_LOOK_AGAIN)
    return _known_as_revoked(started)


@chapter.case(
    "45-crl-in-order", "is revoked, and watches the CRL: each has a higher number than the last, and is no older",
    _PUBLISHED, needs=_NEEDS, limit=lambda _: 2 * _LATEST,
)  # fmt: skip
async def _in_order(scene: Scene) -> Seen:
    desk, started = _publishing(scene), time.monotonic()
    known = await _list(desk, scene, await scene.device())
    for _ in range(2):
        paper = await scene.device()
        await scene.target.registrar.revoke(paper)
        until = time.monotonic() + _LATEST
        while True:
            crl = await _list(desk, scene, paper)
            _follows(crl, known)
            known = crl
            if crl.get_revoked_certificate_by_serial_number(paper.certificate.serial_number) is not None:
                break
            if time.monotonic() > until:
                raise BrokenPromise(f"{_LATEST:.0f} s after its revocation the device is not on the CRL", never=True)
            await asyncio.sleep(_LOOK_AGAIN)
    return _known_as_revoked(started)


def _follows(crl: x509.CertificateRevocationList, known: x509.CertificateRevocationList) -> None:
    """Raise `BrokenPromise` if *crl*, published after *known*, would be taken for an older one (RFC 5280 §5.2.3)."""
    if crl == known:
        return
    now, before = _number(crl), _number(known)
    if now <= before:
        raise BrokenPromise(f"CRL number {now} came after {before}: who has that takes the new list for an old one")
    if crl.last_update_utc < known.last_update_utc:
        raise BrokenPromise(f"a CRL of {crl.last_update_utc} came after one of {known.last_update_utc}")


def _number(crl: x509.CertificateRevocationList) -> int:
    number = extension(crl, x509.CRLNumber)
    if number is None:
        raise BrokenPromise("the CRL has no number (RFC 5280 §5.2.3)")
    return number.crl_number


@chapter.case("45-at-ocsp", "is revoked, and looked up at the OCSP responder", _PUBLISHED, needs=_NEEDS)
async def _at_the_responder(scene: Scene) -> Seen:
    desk, paper = _publishing(scene), await scene.device()
    ways = (False, True)  # Without a nonce the responder may repeat an earlier answer.
    for nonce in ways:
        if (said := await _responder_says(desk, scene, paper, nonce=nonce)) != _GOOD:
            raise BrokenPromise(f"about a good device the OCSP responder says: {said}")
    await scene.target.registrar.revoke(paper)
    started = time.monotonic()
    for nonce in ways:
        if (said := await _responder_says(desk, scene, paper, nonce=nonce)) != _REVOKED:
            how = "with" if nonce else "without"
            raise BrokenPromise(f"after its revocation the OCSP responder says, to a request {how} a nonce: {said}")
    return _known_as_revoked(started)


@chapter.case("45-never-issued", "asks the OCSP responder about a number that was never issued: it does not say good",
              f"http {_UNKNOWN}", f"http {_REVOKED}")  # fmt: skip
async def _never_issued(scene: Scene) -> Seen:
    desk, paper = _publishing(scene), await scene.device()
    said = ""
    for nonce in (False, True):
        said = await _responder_says(desk, scene, paper, nonce=nonce, serial=x509.random_serial_number())
        if said == _GOOD:
            # Whoever has copied the CA's key is found by nothing else (RFC 6960 §2.2).
            raise BrokenPromise("about a certificate that the service never issued the OCSP responder says: good")
    return Seen(Layer.HTTP, said, "", ClosedBy.NOBODY)


@chapter.case("45-suspended", "is suspended, and resumed: CRL and OCSP responder say so, each time", "http released",
              needs=(*_NEEDS, Feature.SUSPENSION), limit=lambda _: 2 * _LATEST)  # fmt: skip
async def _suspended(scene: Scene) -> Seen:
    desk, paper = _publishing(scene), await scene.device()
    serial, started = serial_text(paper.certificate.serial_number), time.monotonic()
    for change, listed, status in ((desk.operator.suspend, True, _REVOKED), (desk.operator.resume, False, _GOOD)):
        await change(serial=serial)
        if (said := await _responder_says(desk, scene, paper, nonce=True)) != status:
            raise BrokenPromise(f"after {change.__name__} the OCSP responder says: {said}")
        until = time.monotonic() + _LATEST
        while await _is_listed(desk, scene, paper) is not listed:
            if time.monotonic() > until:
                raise BrokenPromise(f"{_LATEST:.0f} s after {change.__name__} the CRL says otherwise", never=True)
            await asyncio.sleep(_LOOK_AGAIN)
    return Seen(Layer.HTTP, "released", "", ClosedBy.NOBODY, seconds=time.monotonic() - started)


def _publishing(scene: Scene) -> EnrolmentDesk:
    if scene.target.desk is None:
        raise Impossible("there is no service that publishes revocations")
    return scene.target.desk


def _known_as_revoked(started: float) -> Seen:
    return Seen(Layer.HTTP, _REVOKED, "", ClosedBy.NOBODY, seconds=time.monotonic() - started)
