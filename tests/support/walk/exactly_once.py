"""Messages at QoS 2 whose exchange is cut in the middle, in both directions: each arrives once.

A client that sends what it was not answered for, under the same packet identifier, is what doubles a message if the
broker has forgotten that. So it is interrupted after the PUBLISH or after the PUBREC, by its own end, by another
connection of its own, by a suspension, by a broker that dies; and goes on where it was, twice.
"""

from __future__ import annotations

import random
import signal
from typing import Final

from broker.mqtt.codes import ReasonCode
from broker.mqtt.packets import Pubcomp, Pubrec, Pubrel
from provisioning.pki.keys import generate_key
from tests.support.walk.broker_operations import place_of
from tests.support.walk.fleet_operations import a_token, changes, check, issued
from tests.support.walk.fleet_oracle import Certificate, Device, Key
from tests.support.walk.process_operations import be_on_disk
from tests.support.walk.session_oracle import Connection, Message
from tests.support.walk.walk import PLAIN, World, operation
from tests.support.walk.walking_client import WalkingClient
from tests.support.wire import KEPT, V5, publication

_OWN_ID: Final = 61_000
_HOW: Final = ("vanishes", "is taken over", "is suspended", "gets another certificate", "broker dies")


@operation(4)
def cut_exchange(world: World, choices: random.Random) -> str | None:
    """Cut exchanges at QoS 2 in both directions, and finish them over another connection."""
    sessions = world.sessions
    if not (sessions.serves and sessions.hears):
        return None
    how, answered, released = choices.choice(_HOW), choices.random() < 0.5, choices.random() < 0.5
    device = _arrived(world)
    name, (certificate,) = device.name, device.certificates
    unfinished = world.reality.unfinished.setdefault(name, set())
    client = _joins(world, certificate, WalkingClient(world.reality.dial(certificate, V5, None), unfinished, half=True))
    topic_filter = f"{place_of(device)}/cmd/#"
    assert client.subscribe(topic_filter, 2) == 2
    sessions.subscribed(name, topic_filter, 2)
    command = Message(f"{place_of(device)}/cmd/act", world.payload(), 2)
    message = Message(f"{place_of(device)}/event", world.payload(), 2)
    be_on_disk(world)
    assert world.reality.backend.publish(command) < ReasonCode.UNSPECIFIED_ERROR
    sessions.backend.append(command)
    assert client.await_messages(1) == [command]  # Its PUBREC is sent with it.
    if released:
        client.until(Pubrel)
    client.tls.send(publication(message.topic, message.payload, 2, packet_id=_OWN_ID))
    if answered:
        assert client.until(Pubrec).reason_code is ReasonCode.SUCCESS
    certificate = _interrupted(world, how, client, certificate)
    again = _joins(world, certificate, WalkingClient(world.reality.dial(certificate, V5, None), unfinished), there=True)
    if how in ("is taken over", "gets another certificate"):
        assert client.farewell() is ReasonCode.SESSION_TAKEN_OVER
    again.tls.send(publication(message.topic, message.payload, 2, packet_id=_OWN_ID, dup=True))
    assert again.until(Pubrec).reason_code is ReasonCode.SUCCESS
    again.vanish()
    sessions.leaves(name, sends_will=True)
    again = _joins(world, certificate, WalkingClient(world.reality.dial(certificate, V5, None), unfinished), there=True)
    again.tls.send(publication(message.topic, message.payload, 2, packet_id=_OWN_ID, dup=True))
    assert again.until(Pubrec).reason_code is ReasonCode.SUCCESS
    again.tls.send(Pubrel(_OWN_ID))
    again.until(Pubcomp)
    sessions.backend.append(message)
    got = again.await_messages(0)
    assert not got, f"{name} got {got} twice"
    last = Message(f"{place_of(device)}/cmd/act", world.payload(), 2)
    assert world.reality.backend.publish(last) < ReasonCode.UNSPECIFIED_ERROR
    sessions.backend.append(last)
    assert again.await_messages(1) == [last]
    again.leave(session_expiry_interval=0)
    sessions.leaves(name, sends_will=False, ends_session=True)
    return f"{name} {how}, {'' if answered else 'not '}answered, {'' if released else 'not '}released"


def _arrived(world: World) -> Device:
    name, key = f"twice-{world.payload().decode()}", Key(generate_key())
    answer = world.reality.enrol(name, key, token := a_token(world, name, PLAIN))
    assert not isinstance(answer, str), answer
    token.bought = issued(world, name, PLAIN, key, answer)
    return token.bought.device


def _joins(world: World, certificate: Certificate, client: WalkingClient, *, there: bool = False) -> WalkingClient:
    """Connect; the session must be *there*, or not."""
    name = certificate.device.name
    answer = client.connect(client_id=name, **KEPT)
    assert answer.reason_code is ReasonCode.SUCCESS, answer
    joined = Connection(certificate, V5, kept=True, will=None, delayed=False, lazy=False)
    present, sent = world.sessions.connected(joined, clean=False)
    assert answer.session_present is present is there, f"{name}: present={answer.session_present}"
    assert not sent, sent
    return client


def _interrupted(world: World, how: str, client: WalkingClient, certificate: Certificate) -> Certificate:
    """Interrupt what the device does, and return the certificate with which it comes back."""
    device, reality, sessions = certificate.device, world.reality, world.sessions
    match how:
        case "vanishes":
            client.vanish()
            sessions.leaves(device.name, sends_will=True)
        case "is suspended":
            reality.clients[device.name] = client
            check(reality.operate("/v1/suspensions", device=device.name)[0], frozenset())
            with changes(world):
                world.fleet.suspend(device)
            check(reality.operate("/v1/resumptions", device=device.name)[0], frozenset())
            with changes(world):
                world.fleet.resume(device)
        case "broker dies":
            world.repeats = True
            sessions.broker_ends(killed=True)
            reality.end_broker(signal.SIGKILL)
            client.vanish()
            reality.start_broker()
        case "gets another certificate":
            answer = reality.renew(certificate, key := Key(generate_key()))
            assert not isinstance(answer, str), answer
            return issued(world, device.name, PLAIN, key, answer)
        case _:
            assert how == "is taken over"
    return certificate
