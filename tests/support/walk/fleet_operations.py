"""What operators and devices ask of the service: tokens, certificates, renewals, revocations of every kind."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from cryptography import x509

from broker.mqtt.codes import ReasonCode
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import CredentialPem
from provisioning.revocation.reasons import OPERATOR_REASONS
from tests.support.broker_process import wait_until
from tests.support.walk.comparison import await_broker, compare_status
from tests.support.walk.fleet_oracle import (
    BRIEF,
    HOLD,
    SUPERSEDED,
    Certificate,
    Codes,
    Device,
    Key,
    Rules,
    State,
    Token,
    life_of,
)
from tests.support.walk.walk import BATCH, GROUPS, World, operation
from tests.support.wire import V5

NAMES: Final = tuple(f"meter-{number}" for number in range(6))
REASONS: Final = sorted(OPERATOR_REASONS)
_NOBODY: Final = "nobody-1"
_PROVEN: Final = 15.0
"""Seconds, far fewer than a clock is behind that is left so."""


@operation(5)
def order_token(world: World, choices: random.Random) -> str | None:
    """Order a token: bound to a name, mostly, or for any new device of a group."""
    if not world.sessions.serves:
        return None
    name = choices.choice(NAMES) if choices.random() < 0.8 else None
    device = world.fleet.devices.get(name or "")
    rules = device.rules if device is not None else choices.choice(GROUPS)
    request: dict[str, object] = {} if name is None else {"device": name}
    expected = world.fleet.refuses_order(name)
    code, document = world.reality.operate("/v1/tokens", **request, group=rules.group)
    check(code, expected)
    if code:
        return f"{name} refused: {code}"
    (made,) = document["tokens"]
    world.fleet.tokens.append(Token(made["token"], made["id"], rules, name))
    return f"{made['id']} for {name or 'anybody'} in {rules.group}"


@operation(2)
def void_token(world: World, choices: random.Random) -> str | None:
    if not world.fleet.tokens or not world.sessions.serves:
        return None
    token = choices.choice(world.fleet.tokens)
    code, _ = world.reality.operate("/v1/voidings", tokens=[token.number])
    check(code, frozenset())
    if token.bought is None:
        token.voided = True
    return f"{token.number}"


@operation(8)
def enrol(world: World, choices: random.Random) -> str | None:
    """Enrol with some token, mostly an open one, under some name, mostly the right one, for some key."""
    if not world.fleet.tokens or not world.sessions.serves:
        return None
    opened = [each for each in world.fleet.tokens if each.open]
    token = choices.choice(opened if opened and choices.random() < 0.75 else world.fleet.tokens)
    name = token.device if token.device is not None and choices.random() < 0.85 else choices.choice(NAMES)
    if name in world.asking and not token.open:
        return None  # What an operator has said of it counts as well: `ask_operator`.
    key = a_key(world, choices, world.fleet.devices.get(name))
    return enrolled(world, token, name, key)


def enrolled(world: World, token: Token, name: str, key: Key) -> str:
    fleet, expected = world.fleet, world.fleet.refuses_token(token, name, key)
    answer = world.reality.enrol(name, key, token)
    what = f"{name} with token {token.number}"
    if not granted(answer, expected):
        return f"{what} refused: {answer}"
    assert isinstance(answer, x509.Certificate)
    before = fleet.bought_before(token, name, key)
    device = fleet.devices.get(name)
    if before is None and token.device is None and device is not None:
        before = fleet.given_before(device, key)
    if before is None and token.rules.asks and device is not None:
        held = fleet.given_before(device, key)  # Where its key is enough, a token is not spent on it.
        before = held if held is not None and answer == held.x509 else None
    if before is not None:
        assert answer == before.x509, f"{what}: not the certificate that it has already"
        return f"{what}, answered again"
    with changes(world):
        replaced = fleet.replaced(token, name)
        token.bought = issued(world, name, token.rules, key, answer)
        for each in replaced:
            fleet.revoke_alone(each, SUPERSEDED)
        new = token.bought
    if token.brief:
        _outlive(world, new)
    return f"{what}: {new.serial}{' (expired)' * new.expired}, superseding {len(replaced)}"


@operation(3)
def claim(world: World, choices: random.Random) -> str | None:
    """Enrol on trial, with the claim certificate that a batch shares."""
    if not world.sessions.serves:
        return None
    reality = world.reality
    if not world.claim:
        request = {"name": "batch", "group": BATCH.group, "maximum_devices": 1000, "life_seconds": 86400}
        code, document = reality.operate("/v1/claims", **request)
        check(code, frozenset())
        world.claim = (document["private_key"] + document["certificate"]).encode()
    name = choices.choice(NAMES)
    key = Key(generate_key())
    expected = world.fleet.refuses_claim(name, key)
    answer = reality.enrol(name, key, None, CredentialPem(world.claim))
    if not granted(answer, expected):
        return f"{name} refused: {answer}"
    assert isinstance(answer, x509.Certificate)
    with changes(world):
        trial = issued(world, name, BATCH, key, answer)
        trial.on_trial = True
        world.fleet.set_reason(trial, HOLD)
    return f"{name}: {trial.serial} on trial"


@operation(10)
def renew(world: World, choices: random.Random) -> str | None:
    """Renew some certificate, mostly a good one, for its key or another one."""
    every = [each for each in world.fleet.held() if not each.on_trial or _may_activate(each)]
    if not every or not world.sessions.serves:
        return None
    good = [each for each in every if each.good or each.on_trial]
    presented = choices.choice(good if good and choices.random() < 0.6 else every)
    key = presented.key if choices.random() < 0.5 else a_key(world, choices, presented.device)
    if presented.on_trial:
        key = presented.key
    expected = world.fleet.refuses_renewal(presented, key)
    answer = world.reality.renew(presented, key)
    what = f"{presented.serial} of {presented.device.name} {'(expired) ' if presented.expired else ''}"
    if not granted(answer, expected):
        return f"{what} refused: {answer}"
    assert isinstance(answer, x509.Certificate)
    before = world.fleet.succeeded_before(presented, key)
    if before is not None:
        assert answer == before.x509, f"{what}: not the successor that it has already"
        return f"{what}, answered again"
    device = presented.device
    new = issued(world, device.name, device.rules, key, answer)
    if life_of(presented.x509) < BRIEF:
        assert life_of(new.x509) <= life_of(presented.x509), f"{what}: {new.serial} is valid for longer"
        _outlive(world, new)
    return f"{what}: {new.serial}{' (expired)' * new.expired}, {'the same' if key is presented.key else 'another'} key"


def _may_activate(trial: Certificate) -> bool:
    """Whether a trial is simple: nobody has asked for another key since."""
    return {each.key for each in trial.device.certificates} == {trial.key}


@operation(8)
def arrive(world: World, choices: random.Random) -> str | None:
    """Order a token and enrol with it, for a new key: mostly a device that has no good certificate."""
    return _arrives(world, choices, brief=False)


@operation(3)
def expire(world: World, choices: random.Random) -> str | None:
    """Enrol for one second, and wait until it is over."""
    return _arrives(world, choices, brief=True)


def _arrives(world: World, choices: random.Random, *, brief: bool) -> str | None:
    devices = world.fleet.devices
    waiting = [
        name for name in NAMES if name not in devices or not any(each.good for each in devices[name].certificates)
    ]
    name = choices.choice(waiting if waiting and choices.random() < 0.7 else NAMES)
    device = devices.get(name)
    rules = device.rules if device is not None else choices.choice(GROUPS)
    if not world.sessions.serves or world.fleet.refuses_order(name):
        return None
    token = a_token(world, name, rules, seconds=1 if brief else None)
    return enrolled(world, token, name, a_key(world, choices, device) if brief else Key(generate_key()))


# Operators


def _targets(world: World, choices: random.Random) -> Device | Certificate | None:
    """Return a device or a certificate, as often as not of one that is connected: it has most to lose."""
    connected = [each.certificate for each in world.sessions.connections.values()]
    devices = list(world.fleet.devices.values())
    if not devices or not world.sessions.serves:
        return None
    if connected and choices.random() < 0.5:
        certificate = choices.choice(connected)
    else:
        certificate = choices.choice(choices.choice(devices).certificates)
    return certificate if choices.random() < 0.5 else certificate.device


def _named(target: Device | Certificate) -> dict[str, str]:
    return {"device": target.name} if isinstance(target, Device) else {"serial": target.serial}


@operation(5)
def revoke(world: World, choices: random.Random) -> str | None:
    if (target := _targets(world, choices)) is None:
        return None
    reason = choices.choice(REASONS)
    code, _ = world.reality.operate("/v1/revocations", **_named(target), reason=reason)
    check(code, frozenset())
    with changes(world) as changed:
        _revoke(world, target, reason)
    return f"{_named(target)} for {reason}: {len(changed)}"


def _revoke(world: World, target: Device | Certificate, reason: RevocationReason) -> None:
    if isinstance(target, Device):
        world.fleet.revoke_device(target, reason)
    else:
        world.fleet.revoke_certificate(target, reason)


@operation(1)
def revoke_together(world: World, choices: random.Random) -> str | None:
    """Revoke several devices and certificates in one call; with one that is unknown, none."""
    devices = list(world.fleet.devices.values())
    if len(devices) < 2 or not world.sessions.serves:
        return None
    chosen = choices.sample(devices, 2)
    one = choices.choice(choices.choice(devices).certificates)
    reason = choices.choice(REASONS)
    names = [each.name for each in chosen]
    stranger = choices.random() < 0.3
    code, _ = world.reality.operate(
        "/v1/revocations", devices=[*names, *[_NOBODY] * stranger], serials=[one.serial], reason=reason
    )
    check(code, frozenset({"DEVICE_UNKNOWN"}) if stranger else frozenset())
    if stranger:
        return "with a stranger, refused"
    with changes(world) as changed:
        targets: list[Device | Certificate] = [*chosen, one]
        for target in targets:
            _revoke(world, target, reason)
    return f"{names} {one.serial} for {reason}: {len(changed)}"


@operation(3)
def suspend(world: World, choices: random.Random) -> str | None:
    return _hold(world, choices, "/v1/suspensions", world.fleet.refuses_suspension, world.fleet.suspend)


@operation(4)
def resume(world: World, choices: random.Random) -> str | None:
    return _hold(world, choices, "/v1/resumptions", world.fleet.refuses_resumption, world.fleet.resume)


def _hold(
    world: World,
    choices: random.Random,
    path: str,
    refuses: Callable[[Device | Certificate], Codes],
    act: Callable[[Device | Certificate], None],
) -> str | None:
    if (target := _targets(world, choices)) is None:
        return None
    expected = refuses(target)
    code, _ = world.reality.operate(path, **_named(target))
    check(code, expected)
    if code:
        return f"{_named(target)} refused: {code}"
    with changes(world) as changed:
        act(target)
    return f"{_named(target)}: {len(changed)}"


@operation(1)
def decommission(world: World, choices: random.Random) -> str | None:
    devices = [each for each in world.fleet.devices.values() if each.state is not State.DECOMMISSIONED]
    if len(devices) < 4 or not world.sessions.serves:
        return None
    device = choices.choice(devices)
    code, _ = world.reality.operate("/v1/decommissions", device=device.name)
    check(code, frozenset())
    with changes(world) as changed:
        world.fleet.revoke_device(device, RevocationReason.CESSATION_OF_OPERATION, State.DECOMMISSIONED)
    return f"{device.name}: {len(changed)}"


# What they have in common


def a_token(world: World, name: str, rules: Rules, *, seconds: int | None = None) -> Token:
    """Return a token of *name*'s own, whose certificates are valid for *seconds*."""
    request = {"device": name, "group": rules.group, "lifetime_seconds": seconds}
    code, document = world.reality.operate("/v1/tokens", **request)
    check(code, frozenset())
    (made,) = document["tokens"]
    world.fleet.tokens.append(token := Token(made["token"], made["id"], rules, name, brief=seconds == 1))
    return token


def a_key(world: World, choices: random.Random, device: Device | None) -> Key:
    """Return a new key, mostly; or one that *device* has, or another device."""
    own = [each.key for each in world.fleet.held() if each.device is device]
    if own and choices.random() < 0.4:
        return choices.choice(own)
    others = [each.key for each in world.fleet.held() if each.device is not device]
    if others and choices.random() < 0.1:
        return choices.choice(others)
    return Key(generate_key())


def issued(world: World, name: str, rules: Rules, key: Key, certificate: x509.Certificate) -> Certificate:
    device = world.fleet.devices.get(name) or Device(name, rules)
    assert certificate.public_key() == key.private.public_key()
    new = Certificate(device, key, certificate, world.reality.pem_of(key, certificate))
    world.fleet.issued(name, rules, new)
    return new


def _outlive(world: World, certificate: Certificate) -> None:
    """Wait until *certificate* has expired, also for the broker: if its clock is behind, by a time that is proven."""
    while datetime.now(UTC) <= certificate.x509.not_valid_after_utc:
        time.sleep(0.05)  # Not for luck: there is no other way to let a certificate expire.
    if world.reality.ahead < 0:  # It hears the service's time once a second, and looks at it once a second.
        wait_until(lambda: not world.reality.verdict(certificate)[0], f"{certificate.serial} has ended", _PROVEN)
    certificate.expired = True


def granted(answer: x509.Certificate | str, expected: Codes) -> bool:
    """Return whether *answer* is a certificate; it must be what was *expected*."""
    check(answer if isinstance(answer, str) else "", expected)
    return not isinstance(answer, str)


def check(code: str, expected: Codes) -> None:
    assert code in (expected or {""}), f"answered {code or 'with yes'}, expected {sorted(expected) or 'yes'}"


@contextmanager
def changes(world: World, *, by_authority: bool = False) -> Iterator[list[Certificate]]:
    """Let the oracle change statuses in the block; then compare what everybody says of them. Yields which they are."""
    before = {each: each.reason for each in world.fleet.certificates()}
    changed: list[Certificate] = []
    yield changed
    changed += [each for each in world.fleet.certificates() if each.reason is not before.get(each)]
    if world.sessions.hears:
        broker_hears(world, changed, by_authority=by_authority)
    if world.elsewhere is not None:
        world.elsewhere.hears(changed)
    for each in changed:
        compare_status(world, each)


def broker_hears(world: World, certificates: list[Certificate], *, by_authority: bool = False) -> None:
    """Check that the broker closes at once who must go, and knows what it must."""
    for name, connection in world.sessions.heard(certificates, by_authority=by_authority).items():
        reason = world.reality.clients.pop(name).farewell()
        told = ReasonCode.ADMINISTRATIVE_ACTION if connection.version is V5 else None
        assert reason == told, f"{name} was told {reason}"
    for each in certificates:
        await_broker(world, each)
