"""Devices of manufacturers, a webhook that may veto, claims with few places: what else lets a device in.

Theory
------
Each of these is somebody else's word: of a CA that we do not run, of a system that answers while the service waits, of
a credential that thousands share. An operator's word about the device is worth more than any. So devices with such
evidence are revoked and suspended by all other operations too, and then show it again.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from cryptography import x509

from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.tls import CredentialPem
from tests.support.broker_process import wait_until
from tests.support.crl import crl
from tests.support.manufacturer import Manufacturer
from tests.support.walk.fleet_operations import a_key, a_token, changes, check, enrolled, issued
from tests.support.walk.fleet_oracle import HOLD, SUPERSEDED, Certificate, Codes, Key, State
from tests.support.walk.race import CUT, Race, obtained
from tests.support.walk.walk import BATCH, MADE, VETOED, World, operation

_PREFIX: Final = "made-"
_NUMBERS: Final = ("0", "1", "2")
_MAKERS: Final = ("acme", "zenith")
"""They number their devices alike."""


@dataclass(eq=False)
class Made:
    """A device as its manufacturer has made it."""

    certificate: x509.Certificate
    pem: CredentialPem
    recalled: bool = False
    brought: Certificate | None = None
    """What it was last certified with by this."""


@dataclass(eq=False)
class Maker:
    """A manufacturer, its devices, and the list of those that it has revoked."""

    name: str
    ca: Manufacturer
    devices: dict[str, list[Made]] = field(default_factory=dict)
    lists: int = 0
    begun: datetime = field(default_factory=lambda: datetime.now(UTC) - timedelta(hours=2))

    def made(self, number: str) -> Made:
        """Return the newest of the devices of that number, made anew if it is recalled."""
        every = self.devices.setdefault(number, [])
        if not every:
            self.make(number)
        return every[-1]

    def make(self, number: str) -> None:
        certificate, pem = self.ca.idevid(number)
        self.devices[number].append(Made(certificate, CredentialPem(pem)))

    def list(self) -> bytes:
        """Return its next list."""
        self.lists += 1
        recalled = [each.certificate.serial_number for all_ in self.devices.values() for each in all_ if each.recalled]
        reasons = dict.fromkeys(recalled, x509.ReasonFlags.key_compromise)
        now = self.begun + timedelta(seconds=self.lists)
        return crl(self.ca.held, reasons, number=self.lists, now=now, age=timedelta(), life=timedelta(days=1))


def _makers(world: World) -> list[Maker]:
    if not world.makers:
        for name in _MAKERS:
            maker = Maker(name, Manufacturer(f"{name} devices"))
            request = {"name": name, "group": MADE.group, "certificate": maker.ca.pem, "name_prefix": _PREFIX}
            check(world.reality.operate("/v1/manufacturers", **request)[0], frozenset())
            world.reality.change(f"/v1/manufacturers/{name}", revoked_devices="revoke")
            world.makers.append(maker)
            if world.reality.workers > 1:
                _await_everywhere(world, maker)
    return [each for each in world.makers if isinstance(each, Maker)]


def _await_everywhere(world: World, maker: Maker) -> None:
    """Wait until each process of the service has heard of *maker*: a connection to one of them says so."""
    in_a_row, nobody = 0, CredentialPem(maker.ca.idevid("nobody")[1])

    def heard() -> bool:
        nonlocal in_a_row
        answer = obtained(lambda: world.reality.enrol("nobody-3", Key(generate_key()), None, nobody))
        in_a_row = in_a_row + 1 if answer == "MANUFACTURER_CERTIFICATE" else 0
        return in_a_row >= 8

    wait_until(heard, f"every process knows {maker.name}")


def _refuses(world: World, maker: Maker, made: Made, named: str, key: Key, *, own_name: bool) -> Codes:
    """Return why *named* gets nothing for *key* by the certificate of its manufacturer."""
    fleet, device = world.fleet, world.fleet.devices.get(named)
    codes = set(fleet.refuses_key(key, device))
    if made.recalled:
        codes.add("MANUFACTURER_REVOKED")
    if not own_name:
        codes.add("MANUFACTURER_CERTIFICATE")
    if device is None:
        return frozenset(codes)
    codes |= device.ended() | device.withdrawn()
    others = world.origins.get(named) != maker.name
    if device.rules is not MADE or (others and not fleet.is_its_key(device, key)):
        codes.add("NAME_TAKEN")
    return frozenset(codes)


@operation(7)
def show_idevid(world: World, choices: random.Random) -> str | None:
    """Enrol with a manufacturer's certificate: some device of some manufacturer, mostly under its own name."""
    if not world.sessions.serves:
        return None
    maker, number = choices.choice(_makers(world)), choices.choice(_NUMBERS)
    made = choices.choice(maker.devices[number]) if choices.random() < 0.3 and number in maker.devices else None
    made = made or maker.made(number)
    own_name = choices.random() < 0.9
    named = _PREFIX + (number if own_name else choices.choice([each for each in _NUMBERS if each != number]))
    return _shows(world, maker, made, named, a_key(world, choices, world.fleet.devices.get(named)), own_name=own_name)


def _shows(world: World, maker: Maker, made: Made, named: str, key: Key, *, own_name: bool = True) -> str:
    fleet = world.fleet
    expected = _refuses(world, maker, made, named, key, own_name=own_name)
    what = f"{named} by {maker.name}"
    answer = world.reality.enrol(named, key, None, made.pem)
    code = answer if isinstance(answer, str) else ""
    check(code, expected)
    if isinstance(answer, str):
        return f"{what} refused: {code}"
    device = fleet.devices.get(named)
    if device is not None and (before := fleet.given_before(device, key)) is not None:
        assert answer == before.x509, f"{what}: not the certificate that it has already"
        return f"{what}, answered again"
    replaced: list[Certificate] = []
    if device is not None and not fleet.is_its_key(device, key):
        replaced = [each for each in device.certificates if each.reason in (None, HOLD)]
    with changes(world):
        new = issued(world, named, MADE, key, answer)
        for each in replaced:
            fleet.revoke_alone(each, SUPERSEDED)
    world.origins.setdefault(named, maker.name)
    made.brought = new
    return f"{what}: {new.serial}, superseding {len(replaced)}"


@operation(3)
def recall(world: World, choices: random.Random) -> str | None:
    """Have a manufacturer revoke one of its devices: who has come in by that is revoked here."""
    if not world.sessions.serves:
        return None
    maker, number = choices.choice(_makers(world)), choices.choice(_NUMBERS)
    made, named = maker.made(number), _PREFIX + number
    if made.recalled:
        maker.make(number)
        made = maker.made(number)
    told = [_shows(world, maker, made, named, Key(generate_key()))] if choices.random() < 0.5 else []
    made.recalled = True
    check(world.reality.post_bytes(f"/v1/manufacturers/{maker.name}/lists", maker.list()), frozenset())
    if _came_by(world, maker, made):
        told.append(_await_end(world, named))
    told.append(_shows(world, maker, made, named, Key(generate_key())))
    return "; ".join(told)


def _came_by(world: World, maker: Maker, made: Made) -> bool:
    """Whether it is by *made* that its device is in: nobody has given it a token since, nor has it shown another."""
    if made.brought is None or made.brought.device.state not in (State.ACTIVE, State.SUSPENDED):
        return False
    device = made.brought.device
    words = [each.bought for each in world.fleet.tokens]
    words += [each.brought for all_ in maker.devices.values() for each in all_]
    given = [device.certificates.index(each) for each in words if each is not None and each.device is device]
    return device.certificates[max(given)] is made.brought


def _await_end(world: World, named: str) -> str:
    device = world.fleet.devices[named]

    def ended() -> bool:
        return bool(world.reality.look(f"/v1/devices/{named}")["state"] == State.REVOKED)

    wait_until(ended, f"{named} is revoked, whose manufacturer has revoked it", pause=0.1)
    with changes(world) as changed:
        world.fleet.revoke_device(device, RevocationReason.PRIVILEGE_WITHDRAWN)
    return f"{named} is revoked: {len(changed)}"


# A webhook


@operation(5)
def ask_webhook(world: World, choices: random.Random) -> str | None:
    """Enrol where a webhook may veto; while it thinks about it, something else happens to the token or the device."""
    if not world.sessions.serves:
        return None
    name, hook = choices.choice(("vetoed-0", "vetoed-1")), world.reality.webhook
    if world.fleet.refuses_order(name):
        return None
    token, key = a_token(world, name, VETOED), Key(generate_key())
    how = choices.choice(("allows", "vetoes", "is broken", "token is void", "device is suspended"))
    told = ""
    if how in ("vetoes", "is broken"):
        hook.body = (
            b'{"allow": false}' if how == "vetoes" else choices.choice((b"", b'{"allow": 1}', b'{"allow": true'))
        )
        answer = obtained(lambda: world.reality.enrol(name, key, token))
        hook.body = b'{"allow": true}'
        assert answer in world.fleet.refuses_token(token, name, key) | {"WEBHOOK_VETO" if how == "vetoes" else CUT}
        told = str(answer)
    elif how != "allows":
        what, act = _meanwhile(world, how, name)
        answer = _held(world, lambda: world.reality.enrol(name, key, token), lambda: act(token))
        expected = world.fleet.refuses_token(token, name, key)
        assert answer in expected, f"{name}: {what} while the webhook was asked: {answer}, expected {sorted(expected)}"
        told = f"{what}: {answer}"
    return f"{name} {how}: {told}; {enrolled(world, token, name, key)}"


Meanwhile = tuple[str, Callable[[Any], None]]


def _meanwhile(world: World, how: str, name: str) -> Meanwhile:
    """Return what to do while the webhook is asked, so that its answer counts for nothing."""
    device = world.fleet.devices.get(name)

    def void(token: Any) -> None:
        check(world.reality.operate("/v1/voidings", tokens=[token.number])[0], frozenset())
        token.voided = True

    def suspend(_token: Any) -> None:
        assert device is not None
        check(world.reality.operate("/v1/suspensions", device=name)[0], world.fleet.refuses_suspension(device))
        with changes(world):
            world.fleet.suspend(device)

    if how == "device is suspended" and device is not None and not world.fleet.refuses_suspension(device):
        return "suspended", suspend
    return "void", void


def _held(world: World, ask: Callable[[], Any], act: Callable[[], None]) -> Any:
    """Return what *ask* gets if *act* is done while the webhook is asked."""
    hook, answers = world.reality.webhook, list[Any]()
    asked = len(hook.asked)
    hook.release.clear()
    asking = threading.Thread(target=lambda: answers.append(obtained(ask)), daemon=True)
    asking.start()
    try:
        wait_until(lambda: len(hook.asked) > asked or answers, "the webhook is asked")
        act()
    finally:
        hook.release.set()
        asking.join()
    return answers[0]


# A claim with few places

_PLACES: Final = 2


@operation(2)
def crowd_claim(world: World, choices: random.Random) -> str | None:
    """Let more devices than it has places come with one claim, at once; then end it, and activate one on trial."""
    if not world.sessions.serves:
        return None
    number, reality = world.payload().decode(), world.reality
    request = {"name": f"crowd-{number}", "group": BATCH.group, "maximum_devices": _PLACES, "life_seconds": 3600}
    code, document = reality.operate("/v1/claims", **request)
    check(code, frozenset())
    shared = CredentialPem((document["private_key"] + document["certificate"]).encode())
    keys = {f"crowd-{number}-{place}": Key(generate_key()) for place in range(_PLACES + 2)}
    race = Race()
    for name, key in keys.items():
        race.add(name, partial(obtained, partial(reality.enrol, name, key, None, shared)))
    ends = race.run()
    in_ = {name: end for name, end in ends.items() if isinstance(end, x509.Certificate)}
    others = {end for end in ends.values() if isinstance(end, str)}
    assert len(in_) == _PLACES, ends
    assert others == {"CLAIM_EXHAUSTED"}, ends
    trials = []
    for name, end in in_.items():
        with changes(world):
            trial = issued(world, name, BATCH, keys[name], end)
            trial.on_trial = True
            world.fleet.set_reason(trial, HOLD)
        trials.append(trial)
    if choices.random() < 0.5:
        answer = reality.renew(trials[0], trials[0].key)
        assert isinstance(answer, x509.Certificate), answer
        issued(world, trials[0].device.name, BATCH, trials[0].key, answer)
    for late in ("late", "later"):
        answer = reality.enrol(f"crowd-{number}-{late}", Key(generate_key()), None, shared)
        assert answer == "CLAIM_EXHAUSTED", answer
    check(reality.remove(f"/v1/claims/crowd-{number}"), frozenset())
    answer = obtained(lambda: reality.enrol(f"crowd-{number}-last", Key(generate_key()), None, shared))
    assert answer in ("CLAIM_ENDED", CUT, "CLAIM_EXHAUSTED"), answer
    return f"{sorted(in_)} of {len(keys)}"
