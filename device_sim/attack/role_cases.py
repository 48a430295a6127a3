"""Cases 24 and 44, continued: a genuine certificate of another role than the door is for."""

from __future__ import annotations

from device_sim.attack.asking import calls, desk_of
from device_sim.attack.case import Chapter
from device_sim.attack.issuer import Paper
from device_sim.attack.scene import Scene
from device_sim.attack.verdict import Seen
from provisioning.pki.role import Role

_TOKENS = "/v1/tokens"
_FEED, _KNOWN = "/v1/revocations/feed", "/v1/revocations/feed/authorities"
_ROLE = "http 403 ROLE"

chapter = Chapter()
case = chapter.case


async def _enrolled(scene: Scene, role: Role) -> Paper:
    """Return a new holder of *role*, with its certificate from the service."""
    desk, name = desk_of(scene), scene.fresh(role.value)
    names = ["localhost"] if role is Role.BROKER else []
    return await desk.enrolled(name, await desk.token(name, None, role, dns_names=names))


@case("24-enrolled-broker", "connects with the certificate of an enrolled broker", "mqtt CONNACK 0x87")
async def _broker_connects(scene: Scene) -> Seen:
    return await scene.show(await _enrolled(scene, Role.BROKER))


@case("44-service-as-operator", "asks for an enrolment token with a service's certificate", _ROLE)
async def _service_calls(scene: Scene) -> Seen:
    desk, name = desk_of(scene), scene.fresh()
    desk.note(name)
    return await calls(desk, (await _enrolled(scene, Role.SERVICE)).pem, _TOKENS, {"device": name})


@case("44-broker-as-operator", "asks for an enrolment token with a broker's certificate", _ROLE)
async def _broker_calls(scene: Scene) -> Seen:
    desk, name = desk_of(scene), scene.fresh()
    desk.note(name)
    return await calls(desk, (await _enrolled(scene, Role.BROKER)).pem, _TOKENS, {"device": name})


@case("44-device-follows", "follows the feed of revocations with a device's certificate", _ROLE)
async def _device_follows(scene: Scene) -> Seen:
    return await calls(desk_of(scene), (await scene.device()).pem, _FEED)


@case("44-device-as-broker", "says, as a broker does, which CAs it trusts, with a device's certificate", _ROLE)
async def _device_tells(scene: Scene) -> Seen:
    return await calls(desk_of(scene), (await scene.device()).pem, _KNOWN, {"known": {}}, method="PUT")
