"""Case 44, continued: the enrolment service receives requests for renewal that it must refuse."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from device_sim.attack.asking import desk_of, renews, request_for, short_lived
from device_sim.attack.case import Chapter
from device_sim.attack.scene import Scene
from device_sim.attack.verdict import Seen
from provisioning.pki.keys import generate_key
from provisioning.pki.serial_number import serial_text

_LIFE = timedelta(seconds=1)

chapter = Chapter()
case = chapter.case


@case("44-renews-as-other", "renews its certificate under another device's name", "http 400 CSR_SUBJECT_CHANGED")
async def _as_other(scene: Scene) -> Seen:
    desk, paper, victim = desk_of(scene), await scene.device(), scene.fresh("victim")
    desk.note(victim)
    return await renews(desk, paper, request_for(victim))


@case(
    "44-renews-with-other-uri", "renews its certificate under its own name, with another device's URI",
    "http 400 CSR_SUBJECT_CHANGED",
)  # fmt: skip
async def _with_other_uri(scene: Scene) -> Seen:
    desk, paper, victim = desk_of(scene), await scene.device(), await scene.device()
    names = victim.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    builder = x509.CertificateSigningRequestBuilder().subject_name(paper.certificate.subject)
    csr = builder.add_extension(names.value, critical=names.critical).sign(generate_key(), hashes.SHA256())
    return await renews(desk, paper, csr)


@case("44-renews-revoked", "renews a revoked certificate", "http 403 CERTIFICATE_REVOKED")
async def _revoked(scene: Scene) -> Seen:
    desk, paper = desk_of(scene), await scene.device()
    await scene.target.registrar.revoke(paper)
    return await renews(desk, paper)


@case("44-renews-suspended", "renews a suspended certificate", "http 403 CERTIFICATE_SUSPENDED")
async def _suspended(scene: Scene) -> Seen:
    desk, paper = desk_of(scene), await scene.device()
    await desk.operator.suspend(serial=serial_text(paper.certificate.serial_number))
    return await renews(desk, paper)


@case("44-renews-suspended-device", "is suspended by its name, and renews its certificate",
      "http 403 CERTIFICATE_SUSPENDED", "http 403 DEVICE_SUSPENDED")  # fmt: skip
async def _suspended_device(scene: Scene) -> Seen:
    desk, paper = desk_of(scene), await scene.device()
    await desk.operator.suspend(device=paper.name)
    return await renews(desk, paper)


@case("44-renews-expired", "renews an expired certificate", "http 403 CERTIFICATE_EXPIRED", idle=True)
async def _expired(scene: Scene) -> Seen:
    desk, paper = desk_of(scene), await short_lived(scene, _LIFE)
    await asyncio.sleep(_LIFE.total_seconds() + 1)
    return await renews(desk, paper)


@case("44-renews-forged", "renews a certificate that the service never issued", "http 403 CERTIFICATE_UNKNOWN")
async def _forged(scene: Scene) -> Seen:
    desk, paper = desk_of(scene), scene.forged()
    desk.note(paper.name)
    return await renews(desk, paper)


@case(
    "44-renews-same-serial",
    "renews a certificate that the service never issued, with the serial number of one that it did",
    "http 403 CERTIFICATE_UNKNOWN",
)
async def _same_serial(scene: Scene) -> Seen:
    desk, victim = desk_of(scene), await scene.device()
    identity = scene.target.device(scene.fresh())
    desk.note(identity.name)
    return await renews(desk, scene.target.issuer.issue(identity, serial=victim.certificate.serial_number))
