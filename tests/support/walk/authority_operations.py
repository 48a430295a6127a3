"""What happens to the issuing CAs of the groups that have a line of their own: the next one, an older one's end."""

from __future__ import annotations

import random
from typing import Final

from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.ca_life import ca, wait_for_state
from tests.support.walk.fleet_operations import a_token, changes, check, enrolled
from tests.support.walk.fleet_oracle import Certificate, Key, Token
from tests.support.walk.walk import PLAIN, STRICT, World, operation

LINE: Final = "walk"
_GROUPS: Final = (PLAIN, STRICT)
_INSTEAD: Final = {RevocationReason.CA_COMPROMISE, RevocationReason.SUPERSEDED}
"""Reasons that count for the CA only: what it has issued is revoked without one."""
_MOST: Final = 2
"""Of the devices whose certificates had ended before their CA."""


@operation(1)
def roll_over(world: World, choices: random.Random) -> str | None:
    """Have another issuing CA certify the groups from now on: at first a device, for a second."""
    if not (world.sessions.hears and world.sessions.serves):
        return None
    service, name = world.reality.service, f"issuing-{LINE}-{len(world.authorities) + 1}"
    ca(service, "rollover", "begin", "--line", LINE)
    ca(service, "rollover", "activate", name, "--without-waiting", "--despite-brokers")
    wait_for_state(service, name, "active", processes=world.reality.workers)
    world.reality.add_issuer(name)
    if not world.authorities:
        for each in _GROUPS:
            world.reality.change(f"/v1/groups/{each.group}", issuing_line=LINE)
    world.authorities.append(name)
    device, rules = f"former-{world.payload().decode()}", choices.choice(_GROUPS)
    return f"{name}: {enrolled(world, a_token(world, device, rules, seconds=1), device, Key(generate_key()))}"


@operation(1)
def revoke_authority(world: World, choices: random.Random) -> str | None:
    """Revoke an issuing CA that has a successor, with all that it has issued and that has not ended."""
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
    former = [each for each in world.fleet.held() if each.of_revoked and each.expired and each.device.newest() is each]
    again = [_comes_again(world, each) for each in choices.sample(former, min(_MOST, len(former)))]
    return f"{name} for {reason}: {len(changed)}; {'; '.join(again)}"


def _comes_again(world: World, former: Certificate) -> str:
    """Ask as a device whose certificate had ended before its CA: nothing is renewed by it, and it is not withdrawn."""
    fleet, rules, name = world.fleet, former.device.rules, former.device.name
    if rules.grace:
        expected, answer = fleet.refuses_renewal(former, former.key), world.reality.renew(former, former.key)
        assert isinstance(answer, str), f"{former.serial} of {name} was renewed, whose CA is revoked"
        check(answer, expected)
        return f"{name} refused: {answer}"
    code, document = world.reality.operate("/v1/tokens", group=rules.group)
    check(code, frozenset())
    (made,) = document["tokens"]
    fleet.tokens.append(token := Token(made["token"], made["id"], rules, None))
    return enrolled(world, token, name, former.key)
