"""A device that is put out, does not get in by any way it knows, and then is let in again.

Its session is what such a history is about: gone with a final revocation, there with all that it has missed after a
suspension. What it does meanwhile would take a walk long to do by chance.
"""

from __future__ import annotations

import random

from broker.mqtt.codes import ReasonCode
from provisioning.pki.keys import generate_key
from tests.support.walk.broker_operations import connects
from tests.support.walk.fleet_operations import REASONS, a_token, changes, check, enrolled
from tests.support.walk.fleet_oracle import Device, Key
from tests.support.walk.session_oracle import Message
from tests.support.walk.walk import World, operation


@operation(5)
def return_to_session(world: World, choices: random.Random) -> str | None:
    """Revoke or suspend a device that has a session and a will to lose; readmit it, and see what is left of that."""
    sessions = world.sessions
    candidates = [each for each in world.fleet.held() if each.good]
    if not candidates or not (sessions.serves and sessions.hears):
        return None
    certificate = choices.choice(candidates)
    device, name = certificate.device, certificate.device.name
    connects(world, choices, None, certificate, returns=True, to_lose=True)
    told = [_suspended(world, device) if (returns := choices.random() < 0.4) else _revoked(world, device, choices)]
    ticket = world.reality.tickets.get(certificate.serial)
    told.append(connects(world, choices, None, certificate, returns=True))
    if ticket is not None:
        told.append(connects(world, choices, ticket, ticket.certificate, returns=True))
    missed = Message(f"fleet/{device.rules.group}/{name}/cmd/missed", world.payload(), 1)
    assert world.reality.backend.publish(missed) < ReasonCode.UNSPECIFIED_ERROR
    assert not sessions.commanded(device, missed), "it is out"
    if returns:
        check(world.reality.operate("/v1/resumptions", device=name)[0], frozenset())
        with changes(world):
            world.fleet.resume(device)
    else:
        told.append(enrolled(world, a_token(world, name, device.rules), name, Key(generate_key())))
        certificate = device.certificates[-1]
    told.append(connects(world, choices, None, certificate, returns=True))
    return f"{name}: " + "; ".join(told)


def _suspended(world: World, device: Device) -> str:
    check(world.reality.operate("/v1/suspensions", device=device.name)[0], frozenset())
    with changes(world):
        world.fleet.suspend(device)
    return "suspended"


def _revoked(world: World, device: Device, choices: random.Random) -> str:
    reason = choices.choice(REASONS)
    check(world.reality.operate("/v1/revocations", device=device.name, reason=reason)[0], frozenset())
    with changes(world):
        world.fleet.revoke_device(device, reason)
    return f"revoked for {reason}"
