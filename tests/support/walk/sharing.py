"""Shared subscriptions of services: each message to one member, and what a member leaves to the others.

A member that was put out gets nothing more, and what it has not acknowledged goes to another at QoS 1, and to no other
at QoS 2 [MQTT-4.8.2-5]. One that is suspended has its share of it when it is back.
"""

from __future__ import annotations

import random
import signal
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509

from broker.mqtt.codes import ReasonCode
from provisioning.pki.keys import generate_key
from provisioning.pki.tls import CredentialPem
from tests.support.broker_process import wait_until
from tests.support.tls_client import TlsClient
from tests.support.walk.fleet_operations import check
from tests.support.walk.fleet_oracle import Key, Token
from tests.support.walk.process_operations import be_on_disk
from tests.support.walk.session_oracle import Message
from tests.support.walk.walk import PLAIN, World, operation
from tests.support.walk.walking_client import WalkingClient
from tests.support.wire import KEPT

_TOPIC: Final = "fleet/nobody/nobody/cmd/shared"
_ENDS: Final = ("is revoked", "is suspended", "leaves for good", "is kicked for good")


@dataclass(eq=False)
class Member:
    """A service of the group, with what it has got and not acknowledged, if it is lazy."""

    world: World
    name: str
    pem: bytes
    client: WalkingClient | None = None
    unfinished: set[int] = field(default_factory=set)

    @property
    def connected(self) -> WalkingClient:
        assert self.client is not None
        return self.client

    def connect(self, *, lazy: bool = False) -> ReasonCode:
        reality = self.world.reality
        tls = TlsClient(reality.broker.port, reality.service.bundle, CredentialPem(self.pem))
        self.client = WalkingClient(tls, self.unfinished, lazy=lazy)
        told = self.client.connect(client_id=self.name, **KEPT).reason_code
        self.world.sessions.admitted += told is ReasonCode.SUCCESS
        if told is not ReasonCode.SUCCESS:
            self.client.close()
        return told


@operation(3)
def share(world: World, choices: random.Random) -> str | None:
    """Give messages to two members; end one that has acknowledged nothing; give more."""
    if not (world.sessions.serves and world.sessions.hears):
        return None
    number, how, dies = world.payload().decode(), choices.choice(_ENDS), choices.random() < 0.25
    lazy, other = (_member(world, f"member-{number}-{place}") for place in "ab")
    for each in (lazy, other):
        assert each.connect(lazy=each is lazy) is ReasonCode.SUCCESS
        assert each.connected.subscribe(f"$share/walk-{number}/{_TOPIC}", 2) == 2
    first = [_published(world, choices.choice((0, 1, 2))) for _ in range(5)]
    others, held = other.connected.await_messages(0), lazy.connected.await_messages(0)
    assert sorted(others + held) == sorted(first), f"{others} and {held} of {first}"
    assert held, f"{lazy.name} is connected"
    acknowledged = others
    if dies:
        be_on_disk(world)
        world.repeats = True
        world.sessions.broker_ends(killed=True)
        world.reality.end_broker(signal.SIGKILL)
        for each in (lazy, other):
            each.connected.vanish()
        world.reality.start_broker()
        for each in (lazy, other):
            assert each.connect(lazy=each is lazy) is ReasonCode.SUCCESS
        _check_again(lazy, held)
    _end(world, lazy, how)
    second = [_published(world, choices.choice((0, 1, 2))) for _ in range(3)]
    left = [each for each in held if each.qos == 1] if how != "is suspended" else []
    got = other.connected.await_messages(0)
    if dies:
        got = [each for each in got if each.qos != 1 or each not in acknowledged]
    got += other.connected.await_messages(max(0, len(left + second) - len(got)))
    assert sorted(got) == sorted(left + second), f"{other.name} got {got}, not {left} and {second}"
    if how == "is suspended":
        check(world.reality.operate("/v1/resumptions", device=lazy.name)[0], frozenset())
        world.fleet.events += 1
        wait_until(lambda: lazy.connect() is ReasonCode.SUCCESS, f"{lazy.name} is resumed", pause=0.1)
        _check_again(lazy, held)
        lazy.connected.leave(session_expiry_interval=0)
    elif how == "is revoked":
        assert lazy.connect() is ReasonCode.NOT_AUTHORIZED
    other.connected.leave(session_expiry_interval=0)
    return f"{lazy.name} {how}{', after the broker died' if dies else ''}: {len(held)} held, {len(left)} left"


def _check_again(member: Member, held: list[Message]) -> None:
    """Check that a member that is back gets what it has not acknowledged: in order at each QoS."""
    expected = [each for each in held if each.qos]
    got = member.connected.await_messages(len(expected))
    by_qos = [[[each for each in some if each.qos == qos] for qos in (1, 2)] for some in (got, expected)]
    assert by_qos[0] == by_qos[1], f"{member.name} got {got}, and has not acknowledged {held}"


def _member(world: World, name: str) -> Member:
    code, document = world.reality.operate("/v1/tokens", device=name, role="service")
    check(code, frozenset())
    (made,) = document["tokens"]
    key = Key(generate_key())
    answer = world.reality.enrol(name, key, Token(made["token"], made["id"], PLAIN, name))
    assert isinstance(answer, x509.Certificate), answer
    return Member(world, name, world.reality.pem_of(key, answer))


def _published(world: World, qos: int) -> Message:
    message = Message(_TOPIC, world.payload(), qos)
    told = world.reality.backend.publish(message)
    assert told is ReasonCode.SUCCESS, told
    world.sessions.backend.append(message)
    return message


def _end(world: World, member: Member, how: str) -> None:
    """Put *member* out, or let it go; its session with it, unless it is suspended."""
    reality, client = world.reality, member.connected
    match how:
        case "is revoked":
            check(reality.operate("/v1/revocations", device=member.name, reason="keyCompromise")[0], frozenset())
            world.fleet.events += 1
            assert client.farewell() is ReasonCode.ADMINISTRATIVE_ACTION
        case "is suspended":
            check(reality.operate("/v1/suspensions", device=member.name)[0], frozenset())
            world.fleet.events += 1
            assert client.farewell() is ReasonCode.ADMINISTRATIVE_ACTION
        case "leaves for good":
            client.leave(session_expiry_interval=0)
        case _:
            reality.admin.post("/v1/sessions/kick", {"client": member.name, "forget": True})
            assert client.farewell() is ReasonCode.ADMINISTRATIVE_ACTION
