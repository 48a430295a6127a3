"""A group whose operator is asked: requests that wait, decisions, a list of keys, and revocations in between.

Theory
------
A decision is about what the operator was shown. So what counts is what happens between a request, the decision and the
moment at which the certificate is fetched: the name gets a certificate by a token, its device is revoked, suspended,
decommissioned. An operation does several such things to one name, as they would hardly come together by chance.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509

from provisioning.pki.keys import generate_key, spki_fingerprint
from provisioning.pki.revocation_reason import RevocationReason
from tests.support.walk.fleet_operations import REASONS, a_token, changes, check, enrolled, issued
from tests.support.walk.fleet_oracle import HOLD, SUPERSEDED, WAITS, Certificate, Codes, Key, State
from tests.support.walk.walk import ASKED, World, operation

_NAMES: Final = ("asker-0", "asker-1", "asker-2")


@dataclass(eq=False)
class Request:
    """One that an operator was shown."""

    number: int
    shown_enrolled: bool
    """It says that the name has a certificate already."""
    approved: bool | None = None
    used: bool = False
    held: Certificate | None = None
    """The newest certificate of the name at the decision."""


@dataclass
class Asking:
    """One name, and all that was asked for it."""

    world: World
    name: str
    choices: random.Random
    requests: dict[Key, Request] = field(default_factory=dict)
    listed: Key | None = None
    told: list[str] = field(default_factory=list)
    """All that was done so far."""

    def newest(self) -> Certificate | None:
        device = self.world.fleet.devices.get(self.name)
        return None if device is None else device.newest()

    def codes(self, key: Key) -> Codes:
        """Return why *key* gets no certificate, whatever an operator has decided."""
        device = self.world.fleet.devices.get(self.name)
        codes = set(self.world.fleet.refuses_key(key, device))
        return frozenset(codes if device is None else codes | device.ended() | device.withdrawn())

    def decision(self, key: Key) -> str:
        """Return what the operator's word about *key* comes to: nothing, if it is enough."""
        request, device = self.requests.get(key), self.world.fleet.devices.get(self.name)
        if request is None or request.approved is None:
            return WAITS
        if not request.approved:
            return "APPROVAL_DENIED"
        if request.used:
            return "" if device is not None and self.world.fleet.given_before(device, key) else WAITS
        return "" if request.held is self.newest() else WAITS

    def is_its_key(self, key: Key) -> bool:
        device = self.world.fleet.devices.get(self.name)
        return device is not None and self.world.fleet.given_before(device, key) is not None

    def number_of(self, key: Key) -> int | None:
        digest = spki_fingerprint(key.private.public_key()).hex()
        shown = self.world.reality.look("/v1/approvals", group=ASKED.group, state="pending", limit="1000")["items"]
        return next((each["id"] for each in shown if (each["name"], each["key_sha256"]) == (self.name, digest)), None)


def ask(asking: Asking, key: Key) -> str:
    """Ask without anything but the request itself."""
    world, name, fleet = asking.world, asking.name, asking.world.fleet
    codes, decision, device = asking.codes(key), asking.decision(key), fleet.devices.get(asking.name)
    is_listed = asking.listed is key and (device is None or asking.is_its_key(key))
    answer = world.reality.enrol(name, key, None, label=ASKED.group)
    shown = "asks" if not isinstance(answer, x509.Certificate) else f"gets {answer.serial_number:x}"
    if codes:
        assert answer in codes | ({decision} if decision else set()), f"{name}: {answer}, expected {sorted(codes)}"
    elif decision and not is_listed:
        assert answer == decision, f"{name}: {answer}, expected {decision}"
    else:
        assert isinstance(answer, x509.Certificate), f"{name}: {answer}, expected a certificate"
    if answer == WAITS:
        number = asking.number_of(key)
        assert number is not None, f"{name} waits, and no operator sees it"
        before = asking.requests.get(key)
        if before is None or before.number != number:
            asking.requests[key] = Request(number, shown_enrolled=device is not None)
    if not isinstance(answer, x509.Certificate):
        return f"asks: {answer}"
    before_this = None if device is None else fleet.given_before(device, key)
    if before_this is not None:
        assert answer == before_this.x509, f"{name}: not the certificate that it has already"
        return "gets it again"
    with changes(world):
        replaced = [] if device is None else [each for each in device.certificates if each.reason in (None, HOLD)]
        issued(world, name, ASKED, key, answer)
        for each in replaced:
            fleet.revoke_alone(each, SUPERSEDED)
    if not decision:
        asking.requests[key].used = True
    return shown


def decide(asking: Asking, key: Key, *, approve: bool) -> str:
    """Decide about what was shown then, which may have changed."""
    request, world = asking.requests.get(key), asking.world
    if request is None:
        return "nothing to decide"
    expected = set[str]()
    if request.used:
        expected = {"APPROVAL_DECIDED"}
    elif approve and not request.shown_enrolled and asking.name in world.fleet.devices:
        expected = {"APPROVAL_OUTDATED"}
    path = f"/v1/approvals/{request.number}/decision"
    if approve and not request.used and request.approved is False:
        check(world.reality.operate(path, decision="approve")[0], frozenset({"APPROVAL_DECIDED"}))
    code, _ = world.reality.operate(path, decision="approve" if approve else "deny", despite_denial=approve)
    check(code, frozenset(expected))
    if code == "APPROVAL_OUTDATED":
        number = asking.number_of(key)
        assert number not in (None, request.number), "it is to be shown again"
        asking.requests[key] = Request(number, shown_enrolled=True)
    elif not code:
        request.approved, request.held = approve, asking.newest()
    return f"{'approved' if approve else 'denied'} {code}".strip()


def put_on_list(asking: Asking, key: Key) -> str:
    digest = spki_fingerprint(key.private.public_key()).hex()
    devices = [{"name": asking.name, "key_sha256": digest}]
    code, answer = asking.world.reality.operate(f"/v1/groups/{ASKED.group}/listed", devices=devices)
    assert not code, code
    assert not answer["errors"], answer
    asking.listed = key
    return "listed"


def by_token(asking: Asking, key: Key) -> str:
    """Enrol with a token of its own, which readmits one who was revoked.

    It is not spent on a new device that an operator has let in already, by his decision or by the list.
    """
    if asking.world.fleet.refuses_order(asking.name):
        return "no token"
    token, is_new = a_token(asking.world, asking.name, ASKED), asking.newest() is None
    is_approved = not asking.decision(key)
    told = enrolled(asking.world, token, asking.name, key)
    if is_new and token.bought is not None and (is_approved or asking.listed is key):
        token.bought = None
        if is_approved:
            asking.requests[key].used = True
    return told


def end(asking: Asking, key: Key) -> str:  # noqa: ARG001 - as the others
    """Suspend, resume, revoke or decommission the device, or revoke its newest certificate alone."""
    world, newest, fleet = asking.world, asking.newest(), asking.world.fleet
    if newest is None:
        return "nobody to end"
    device, how = newest.device, asking.choices.choice(("suspend", "resume", "revoke", "one", "decommission"))
    reason = asking.choices.choice(REASONS)
    ended = RevocationReason.CESSATION_OF_OPERATION
    named = {"serial": newest.serial} if how == "one" else {"device": device.name}
    more = {"reason": reason} if how in ("one", "revoke") else {}
    doing: dict[str, tuple[str, Codes, Callable[[], None]]] = {
        "suspend": ("/v1/suspensions", fleet.refuses_suspension(device), lambda: fleet.suspend(device)),
        "resume": ("/v1/resumptions", fleet.refuses_resumption(device), lambda: fleet.resume(device)),
        "revoke": ("/v1/revocations", frozenset(), lambda: fleet.revoke_device(device, reason)),
        "one": ("/v1/revocations", frozenset(), lambda: fleet.revoke_certificate(newest, reason)),
        "decommission": (
            "/v1/decommissions",
            frozenset(),
            lambda: fleet.revoke_device(device, ended, State.DECOMMISSIONED),
        ),
    }
    path, expected, act = doing[how]
    code, _ = world.reality.operate(path, **named, **more)
    check(code, expected)
    if not code:
        with changes(world):
            act()
    return f"{how} {code}".strip()


@operation(6)
def ask_operator(world: World, choices: random.Random) -> str | None:
    """Ask, be decided about, enrolled, ended, in any order, as one name with two keys."""
    if not world.sessions.serves:
        return None
    name = choices.choice(_NAMES)
    asking = world.asking.setdefault(name, Asking(world, name, choices))
    assert isinstance(asking, Asking)
    asking.choices = choices
    keys = [Key(generate_key()), *asking.requests][-2:]
    if len(keys) == 1:
        keys.append(Key(generate_key()))
    told = list[str]()
    try:
        for _ in range(6):
            key, chance = choices.choice(keys), choices.random()
            asking.told.append(f"key {keys.index(key)}:")
            if chance < 0.45:
                told.append(ask(asking, key))
            elif chance < 0.7:
                told.append(decide(asking, key, approve=choices.random() < 0.85))
            elif chance < 0.78:
                told.append(put_on_list(asking, key))
            elif chance < 0.88:
                told.append(by_token(asking, key))
            else:
                told.append(end(asking, key))
            asking.told.append(told[-1])
    except AssertionError as error:
        error.add_note(f"{name} before: {' '.join(asking.told)}")
        raise
    return f"{name}: {'; '.join(told)}"
