"""What happens to the issuing CAs of the group that has a line of its own: the next one, the end of an older one."""

from __future__ import annotations

import random
from typing import Final

from provisioning.pki.revocation_reason import RevocationReason
from tests.support.ca_life import ca, wait_for_state
from tests.support.walk.fleet_operations import changes
from tests.support.walk.walk import STRICT, World, operation

LINE: Final = "walk"
_INSTEAD: Final = {RevocationReason.CA_COMPROMISE, RevocationReason.SUPERSEDED}
"""Reasons that count for the CA only: what it has issued is revoked without one."""


@operation(1)
def roll_over(world: World, _choices: random.Random) -> str | None:
    """Have another issuing CA certify the group from now on."""
    if not (world.sessions.hears and world.sessions.serves):
        return None
    service, name = world.reality.service, f"issuing-{LINE}-{len(world.authorities) + 1}"
    ca(service, "rollover", "begin", "--line", LINE)
    ca(service, "rollover", "activate", name, "--without-waiting", "--despite-brokers")
    wait_for_state(service, name, "active")
    world.reality.add_issuer(name)
    if not world.authorities:
        world.reality.change(f"/v1/groups/{STRICT.group}", issuing_line=LINE)
    world.authorities.append(name)
    return name


@operation(1)
def revoke_authority(world: World, choices: random.Random) -> str | None:
    """Revoke an issuing CA that has a successor, with all that it has issued."""
    if not (world.sessions.hears and world.sessions.serves):
        return None
    while len(world.authorities) < 2:
        roll_over(world, choices)
    older = [each for each in world.authorities[:-1] if each not in world.ended_authorities]
    if not older:
        return None
    name = choices.choice(older)
    reason = choices.choice(sorted({*_INSTEAD, RevocationReason.CESSATION_OF_OPERATION}))
    ca(world.reality.service, "revoke", name, "--reason", reason, "--yes")
    world.ended_authorities.append(name)
    told = RevocationReason.UNSPECIFIED if reason in _INSTEAD else reason
    with changes(world, by_authority=True) as changed:
        for each in world.fleet.certificates():
            if world.reality.issuer_name(each.x509) == name:
                each.of_revoked = True
                if not each.expired:
                    world.fleet.revoke_alone(each, told)
    newest = world.reality.stored_sequence()
    assert newest > world.fleet.events, "the CA's own certificate, and what it has issued to the service itself"
    world.fleet.events = newest
    return f"{name} for {reason}: {len(changed)}"
