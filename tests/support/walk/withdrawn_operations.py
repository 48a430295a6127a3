"""A device that is out tries every door that it knows, with all that it ever had.

Every connection, certificate, TLS session, token and key of it was good once. Which of them the walk tries together by
chance are few: here they are all tried, after whatever has happened meanwhile.
"""

from __future__ import annotations

import random

from cryptography import x509

from broker.mqtt.codes import ReasonCode
from provisioning.pki.keys import generate_key
from provisioning.pki.tls import CredentialPem
from tests.support.tls_client import Ended, TlsClient
from tests.support.walk.broker_operations import connects
from tests.support.walk.fleet_operations import check
from tests.support.walk.fleet_oracle import Certificate, Key
from tests.support.walk.reality import Ticket
from tests.support.walk.session_oracle import ACCEPTED
from tests.support.walk.walk import ASKED, World, operation
from tests.support.walk.walking_client import WalkingClient
from tests.support.wire import V5

_MOST = 3
"""Of its certificates, of which a device has many in the end."""


@operation(6)
def try_every_door(world: World, choices: random.Random) -> str | None:
    """Try all that a device has whose certificate was withdrawn."""
    held = world.fleet.held()
    out = [each for each in held if each.seen is not None and each.reason is not None and not each.expired]
    if not out:
        return None
    device = choices.choice(out).device
    mine = [each for each in out if each.device is device]
    told = []
    for each in choices.sample(mine, min(_MOST, len(mine))):
        told.append(connects(world, choices, None, each, returns=True))
        ticket = world.reality.tickets.get(each.serial)
        if ticket is not None:
            told.append(connects(world, choices, ticket, each, returns=True))
            _resumes_early(world, ticket)
        if world.sessions.serves and not each.on_trial:
            told += [_renews(world, each, key) for key in (each.key, Key(generate_key()))]
    if world.sessions.serves and device.name not in world.asking:  # Else an operator's word counts: `ask_operator`.
        told += _asks(world, mine[-1])
    return f"{device.name}: {'; '.join(told)}"


def _resumes_early(world: World, ticket: Ticket) -> None:
    """Send all that a connection is for in the first flight, behind CONNECT: nothing of it counts."""
    name = ticket.certificate.device.name
    tls = TlsClient(
        world.reality.broker.port, world.reality.service.bundle, context=ticket.context, session=ticket.session
    )
    client = WalkingClient(tls, set())
    try:
        told = client.connect(client_id=name).reason_code.name
    except (OSError, Ended):
        return
    assert told in world.sessions.answers(ticket.certificate, V5, own_name=True) - {ACCEPTED}, f"{name}: {told}"
    assert client.farewell() in (None, ReasonCode.NOT_AUTHORIZED)


def _renews(world: World, presented: Certificate, key: Key) -> str:
    expected = world.fleet.refuses_renewal(presented, key)
    answer = world.reality.renew(presented, key)
    told = answer if isinstance(answer, str) else ""
    check(told, expected)
    assert told, f"{presented.serial} is withdrawn, and was renewed"
    return f"renews: {told}"


def _asks(world: World, presented: Certificate) -> list[str]:
    """Ask with everything but a token that is open: with those it may come back."""
    name, fleet, told = presented.device.name, world.fleet, []
    for token in [each for each in fleet.tokens if not each.open and each.device == name][-_MOST:]:
        for key in (presented.key, Key(generate_key())):
            if fleet.bought_before(token, name, key) is not None:
                continue
            answer = world.reality.enrol(name, key, token)
            code = answer if isinstance(answer, str) else ""
            check(code, fleet.refuses_token(token, name, key))
            assert code, f"{name}: token {token.number} has bought another certificate"
            told.append(f"token: {code}")
    for label in (None, presented.device.rules.group, ASKED.group):
        for credential in (None, CredentialPem(presented.pem)):
            answer = world.reality.enrol(name, presented.key, None, credential, label)
            assert not isinstance(answer, x509.Certificate), f"{name} got {answer} for nothing"
            told.append(answer)
    return told
