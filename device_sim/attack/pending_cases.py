"""Case 44, continued: what was granted to one is asked for by another: an approval, a token for a group.

A request that waits for an operator gets 202 (RFC 7030 §4.2.3), and the device repeats it. Whoever repeats it instead,
with another key or under another name, must wait for a decision of their own.
"""

from __future__ import annotations

from device_sim.attack.asking import desk_of, enrols, request_for
from device_sim.attack.case import Chapter
from device_sim.attack.desk import EnrolmentDesk
from device_sim.attack.scene import Scene
from device_sim.attack.target import Impossible
from device_sim.attack.verdict import Seen
from provisioning.pki.keys import PrivateKey, generate_key

_WAITING = "http 202 PENDING"

chapter = Chapter()
case = chapter.case


async def _asks(scene: Scene, desk: EnrolmentDesk, name: str, key: PrivateKey, group: str) -> Seen:
    """Ask for *name* without a token: return the answer, with the code in its first word."""
    desk.note(name)
    return await enrols(scene, request_for(name, key), name, None, label=group)


async def _approved(scene: Scene) -> tuple[EnrolmentDesk, str, str, PrivateKey]:
    """Return a group that admits by approval, a name, and the key whose request for it was approved."""
    desk = desk_of(scene)
    if scene.target.prefix:
        raise Impossible("it needs a group that admits by approval, which would stay behind here")
    group, name, key = scene.fresh("approving"), scene.fresh(), generate_key()
    await desk.operator.create_group(group, {"ways": ["approval"]})
    asked = await _asks(scene, desk, name, key, group)
    if asked.text != _WAITING:
        raise Impossible(f"a request that waits for an approval is answered otherwise here: {asked.text}")
    async for request in desk.operator.approvals(group=group, state="pending"):
        await desk.operator.decide(request.id, approve=True)
    return desk, group, name, key


@case("44-pending-other-key", "repeats another's approved request with its own key", _WAITING)
async def _other_key(scene: Scene) -> Seen:
    desk, group, name, key = await _approved(scene)
    seen = await _asks(scene, desk, name, generate_key(), group)
    return seen if seen.got_in else await _the_owner_is_served(scene, desk, name, key, group, seen)


@case("44-pending-other-name", "repeats, under its own name, a request that was approved for another", _WAITING)
async def _other_name(scene: Scene) -> Seen:
    desk, group, name, key = await _approved(scene)
    seen = await _asks(scene, desk, scene.fresh(), generate_key(), group)
    return seen if seen.got_in else await _the_owner_is_served(scene, desk, name, key, group, seen)


async def _the_owner_is_served(
    scene: Scene, desk: EnrolmentDesk, name: str, key: PrivateKey, group: str, seen: Seen
) -> Seen:
    """Return *seen*; raise `Impossible` if the device itself gets nothing: then nobody was refused in particular."""
    owner = await _asks(scene, desk, name, key, group)
    if not owner.got_in:
        raise Impossible(f"not even the device whose request was approved gets its certificate: {owner.text}")
    return seen


@case("44-group-token-elsewhere", "uses a token for any new device of a group under another group's label",
      "http 403 TOKEN_GROUP")  # fmt: skip
async def _elsewhere(scene: Scene) -> Seen:
    desk, name = desk_of(scene), scene.fresh()
    token = await desk.token_of_group(scene.target.group)
    return await enrols(scene, request_for(name), name, token, label=f"{scene.target.group}-other")
