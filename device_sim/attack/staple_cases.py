"""Case 45, continued: the OCSP response that the broker staples about its own certificate (RFC 6066 §8).

A device that asks relies on it, and has nothing else that would tell it of a stolen broker's key.

Rules
-----
1. A staple counts if it is about the certificate that is shown, signed as it must be, and in date (RFC 6960 §3.2).
2. No staple is no finding, unless the certificate says that one is due (RFC 7633): devices that heed that are shut out.
3. A staple is read by the CA of the broker's certificate, which need not be that of the devices.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509

from device_sim.attack.asking import desk_of
from device_sim.attack.case import Chapter
from device_sim.attack.issuer import Paper
from device_sim.attack.scene import Scene
from device_sim.attack.target import BrokenPromise, Impossible
from device_sim.attack.verdict import ClosedBy, Layer, Seen
from provisioning.pki.issued_by import is_issued_by
from provisioning.pki.ocsp import Answer, OcspRefused, ask, read_answer, responders
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import serial_text
from provisioning.pki.stapling import ask_for_staple, staple_in

_GOOD, _NOT_GOOD = "tls staple-good", "tls staple-not-good"
_LATEST = 30.0
_LOOK_AGAIN = 0.1

chapter = Chapter()
case = chapter.case


@dataclass(frozen=True, slots=True)
class _Shown:
    """What the broker presented."""

    certificate: x509.Certificate
    above: list[x509.Certificate]
    """What came with it, and the anchors."""
    staple: bytes
    """Empty: none."""

    @property
    def staple_due(self) -> bool:
        """Whether its certificate says that it always staples."""
        return any(
            isinstance(each.value, x509.TLSFeature) and x509.TLSFeatureType.status_request in each.value
            for each in self.certificate.extensions
        )


async def _shown(scene: Scene, paper: Paper) -> _Shown:
    """Return what the broker presents to a device that asks for a staple."""
    context = scene.context(paper.pem)
    if not ask_for_staple(context):
        raise Impossible("this Python cannot ask for a staple")
    client = await scene.dial(context)
    try:
        inner: Any = getattr(client.socket, "_sslobj")  # noqa: B009 - `ssl` has no staples, and chains from 3.13 on only
        own, *above = [
            x509.load_pem_x509_certificate(each.public_bytes().encode()) for each in inner.get_unverified_chain()
        ]
        anchors = [x509.load_der_x509_certificate(der) for der in context.get_ca_certs(binary_form=True)]
        return _Shown(own, [*above, *anchors], staple_in(inner))
    finally:
        client.close()


def _read(shown: _Shown) -> Answer:
    """Return what the staple says about the certificate; raise `BrokenPromise` if no device could accept it."""
    issuer = next((each for each in shown.above if is_issued_by(shown.certificate, each)), None)
    if issuer is None:
        raise Impossible("the CA of the broker's certificate is not known: put its certificate into --cafile")
    serial = shown.certificate.serial_number
    try:
        return read_answer(shown.staple, ask(serial, issuer, nonce=False), serial, issuer, datetime.now(UTC))
    except OcspRefused as error:
        raise BrokenPromise(f"the broker staples what is no answer about its certificate: {error}") from error


@case("45-staple", "asks for the broker's staple: it is about the broker's certificate, signed and in date", _GOOD)
async def _about_itself(scene: Scene) -> Seen:
    shown = await _shown(scene, await scene.device())
    if not shown.staple and shown.staple_due:
        raise BrokenPromise("the broker staples nothing, and its certificate says that it always does (RFC 7633)")
    if not shown.staple and not responders(shown.certificate):
        raise Impossible("the broker's certificate names no OCSP responder")
    if not shown.staple:
        raise Impossible("the broker staples nothing")
    answer = _read(shown)
    if not answer.known or answer.reason is not None:
        raise BrokenPromise("by its staple the broker's certificate is revoked, or unknown")
    return Seen(Layer.TLS, "staple-good", f"until {answer.fresh_until:%H:%M:%S} UTC", ClosedBy.NOBODY)


@case("45-staple-of-revoked", "asks a broker that has been revoked for its staple: that does not say good", _NOT_GOOD,
      limit=lambda _: _LATEST, last=True)  # fmt: skip
async def _of_a_revoked_one(scene: Scene) -> Seen:
    if scene.target.registry is None:
        raise Impossible("there is no other broker of the fleet that could be revoked")
    desk, paper = desk_of(scene), await scene.device()
    async with scene.target.registry() as endpoint:
        other = scene.at(endpoint)
        try:
            shown = await _shown(other, paper)
            if not shown.staple or _read(shown).reason is not None:
                raise Impossible("that broker staples nothing while it is good")
            serial = serial_text(shown.certificate.serial_number)
            await desk.operator.revoke(serial=serial, reason=RevocationReason.KEY_COMPROMISE)
            started = time.monotonic()
            while True:
                shown = await _shown(other, paper)
                if not shown.staple or _read(shown).reason is not None:
                    told = "revoked" if shown.staple else "nothing"
                    return Seen(Layer.TLS, "staple-not-good", f"it says {told}", ClosedBy.NOBODY).since(started)
                if time.monotonic() > started + _LATEST:
                    raise BrokenPromise(f"{_LATEST:.0f} s after its revocation the broker staples that it is good")
                await asyncio.sleep(_LOOK_AGAIN)
        finally:
            await other.close()
