"""Case 44, continued: somebody calls the operators' API who may not."""

from __future__ import annotations

from device_sim.attack.asking import calls, desk_of
from device_sim.attack.case import Chapter
from device_sim.attack.desk import EnrolmentDesk
from device_sim.attack.issuer import Paper
from device_sim.attack.scene import Scene
from device_sim.attack.verdict import Seen
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.pki.serial_number import serial_text

_TOKENS, _REVOCATIONS, _DEVICES = "/v1/tokens", "/v1/revocations", "/v1/devices"
_AUDITOR, _ENROLLER, _ADMIN = "auditor", "enroller", "admin"

chapter = Chapter()
case = chapter.case


async def _operator(scene: Scene, desk: EnrolmentDesk, role: str) -> Paper:
    """Return a new operator of *role*, with its certificate."""
    name = scene.fresh("operator")
    return await desk.enrolled(name, await desk.token(name, None, Role.OPERATOR, operator_role=role))


@case("44-stranger-as-operator", "asks for an enrolment token without a certificate", "http 403 CERTIFICATE_MISSING")
async def _stranger(scene: Scene) -> Seen:
    return await calls(desk_of(scene), None, _TOKENS, {"device": scene.fresh()})


@case("44-device-as-operator", "asks for an enrolment token with a device's certificate", "http 403 ROLE")
async def _device(scene: Scene) -> Seen:
    desk, paper = desk_of(scene), await scene.device()
    return await calls(desk, paper.pem, _TOKENS, {"device": scene.fresh()})


@case("44-device-reads", "reads the list of devices with a device's certificate", "http 403 ROLE")
async def _device_reads(scene: Scene) -> Seen:
    desk, paper = desk_of(scene), await scene.device()
    return await calls(desk, paper.pem, _DEVICES)


@case("44-auditor-revokes", "revokes a device as an operator who may only read", "http 403 OPERATOR_ROLE")
async def _auditor(scene: Scene) -> Seen:
    desk, victim = desk_of(scene), await scene.device()
    auditor = await _operator(scene, desk, _AUDITOR)
    return await calls(desk, auditor.pem, _REVOCATIONS, {"device": victim.name, "reason": "unspecified"})


@case("44-auditor-enrols", "makes a device's token as an operator who may only read", "http 403 OPERATOR_ROLE")
async def _auditor_enrols(scene: Scene) -> Seen:
    desk, name = desk_of(scene), scene.fresh()
    auditor = await _operator(scene, desk, _AUDITOR)
    desk.note(name)
    return await calls(desk, auditor.pem, _TOKENS, {"device": name, "group": scene.target.group})


@case("44-enroller-revokes", "revokes a device as an operator who may only enrol devices", "http 403 OPERATOR_ROLE")
async def _enroller_revokes(scene: Scene) -> Seen:
    desk, victim = desk_of(scene), await scene.device()
    enroller = await _operator(scene, desk, _ENROLLER)
    return await calls(desk, enroller.pem, _REVOCATIONS, {"device": victim.name, "reason": "unspecified"})


@case(
    "44-enroller-makes-operator", "makes an operator's token as an operator who may only enrol devices",
    "http 403 OPERATOR_ROLE",
)  # fmt: skip
async def _enroller(scene: Scene) -> Seen:
    desk, name = desk_of(scene), scene.fresh("operator")
    enroller = await _operator(scene, desk, _ENROLLER)
    desk.note(name)
    return await calls(desk, enroller.pem, _TOKENS, {"device": name, "role": "operator", "operator_role": _ADMIN})


@case("44-revoked-operator", "revokes a device with a revoked operator's certificate", "http 403 CERTIFICATE_REVOKED")
async def _revoked(scene: Scene) -> Seen:
    desk, victim = desk_of(scene), await scene.device()
    operator = await _operator(scene, desk, _ADMIN)
    serial = serial_text(operator.certificate.serial_number)
    await desk.operator.revoke(serial=serial, reason=RevocationReason.KEY_COMPROMISE)
    return await calls(desk, operator.pem, _REVOCATIONS, {"device": victim.name, "reason": "unspecified"})
