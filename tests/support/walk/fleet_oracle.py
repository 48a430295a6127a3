"""What the provisioning service must say of its fleet: devices, keys, certificates, tokens.

It is written from the documentation (docs/enrolment.md, docs/revocation-publication.md), not from the service, and as
plainly as possible: a few lists that are looked through from one end to the other.

Rules
-----
1. A question is answered with *all* the codes for which it may be refused. None: it must be granted. Which of two good
   reasons a refusal names is not the oracle's business.
2. It is asked before reality is, and told after: `issued`, `revoke`, … change it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Final

from cryptography import x509

from provisioning.pki.keys import PrivateKey
from provisioning.pki.revocation_reason import RevocationReason

HOLD: Final = RevocationReason.CERTIFICATE_HOLD
COMPROMISED: Final = RevocationReason.KEY_COMPROMISE
SUPERSEDED: Final = RevocationReason.SUPERSEDED
Codes = frozenset[str]
NONE: Final[Codes] = frozenset()
WAITS: Final = "waits"
"""Said of a request that an operator is to decide about."""
BRIEF: Final = timedelta(minutes=5)
"""One that is valid for less is predated by more than that lasts, and so are its successors."""


class State(StrEnum):
    """What an operator has made of a device."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"
    DECOMMISSIONED = "decommissioned"


@dataclass(frozen=True)
class Rules:
    """Those of a group that matter here."""

    group: str
    replaces: bool = False
    """An existing device that shows a token of its own gets a certificate, and its older ones are superseded."""
    repeats: bool = True
    """The same request gets the same answer again, for longer than a walk takes."""
    grace: bool = False
    """An expired certificate can be renewed."""
    asks: bool = False
    """Who shows nothing better waits for an operator."""


@dataclass(eq=False)
class Key:
    """A private key, and whose it is."""

    private: PrivateKey
    owner: Device | None = None


@dataclass(eq=False)
class Certificate:
    """One that was handed out."""

    device: Device
    key: Key
    x509: x509.Certificate
    pem: bytes
    """Key, certificate and chain."""
    reason: RevocationReason | None = None
    by_itself: bool = False
    """Suspended by its serial number: its device's resumption does not end that."""
    on_trial: bool = False
    expired: bool = False
    seen: RevocationReason | None = None
    """What the broker has heard of it."""
    lost: bool = False
    """Nobody has its key: the answer to its request was lost."""
    of_revoked: bool = False
    """Its CA has been revoked, be it after its own end."""

    @property
    def serial(self) -> str:
        return f"{self.x509.serial_number:x}"

    @property
    def good(self) -> bool:
        return self.reason is None and not self.expired

    @property
    def is_passed_over(self) -> bool:
        """Whether it is left alone when its device is ended or suspended: it had expired before the next was issued.

        The newest may have expired only by a clock that is ahead.
        """
        return self.expired and self is not self.device.newest()


@dataclass(eq=False)
class Token:
    """A one-time token."""

    secret: str
    number: int
    rules: Rules
    device: str | None
    brief: bool = False
    """What it buys is valid for a second."""
    voided: bool = False
    bought: Certificate | None = None

    @property
    def open(self) -> bool:
        return not self.voided and self.bought is None


@dataclass(eq=False)
class Device:
    """A name that has a certificate."""

    name: str
    rules: Rules
    state: State = State.ACTIVE
    certificates: list[Certificate] = field(default_factory=list)
    """The oldest first."""

    @property
    def good(self) -> bool:
        """Whether it has a certificate that is."""
        return any(each.good for each in self.certificates)

    def newest(self, key: Key | None = None) -> Certificate | None:
        """Return the newest certificate, or the newest for *key*."""
        return next((each for each in reversed(self.certificates) if key in (None, each.key)), None)

    def withdrawn(self) -> Codes:
        """Return why it may not ask for another certificate by itself: its last one was revoked, or is on hold."""
        last = next((each for each in reversed(self.certificates) if not (each.on_trial and each.reason is HOLD)), None)
        if last is None or last.reason is None:
            return NONE
        return frozenset({"CERTIFICATE_SUSPENDED" if last.reason is HOLD else "CERTIFICATE_REVOKED"})

    def ended(self) -> Codes:
        """Return why nothing is issued to it."""
        return {
            State.ACTIVE: NONE,
            State.SUSPENDED: frozenset({"DEVICE_SUSPENDED"}),
            State.REVOKED: frozenset({"CERTIFICATE_REVOKED"}),
            State.DECOMMISSIONED: frozenset({"DEVICE_DECOMMISSIONED"}),
        }[self.state]


class FleetOracle:
    """All that the service knows."""

    def __init__(self) -> None:
        self.devices: dict[str, Device] = {}
        self.tokens: list[Token] = []
        self.events = 0
        """How many changes of a certificate's status there were: the feed numbers them."""

    def certificates(self) -> Iterator[Certificate]:
        for device in self.devices.values():
            yield from device.certificates

    def held(self) -> list[Certificate]:
        """Return those that somebody has, with their keys."""
        return [each for each in self.certificates() if not each.lost]

    def listed(self) -> dict[str, RevocationReason]:
        """Return what a CRL lists: serial numbers and reasons."""
        return {each.serial: each.reason for each in self.certificates() if each.reason and not each.expired}

    # Enrolment

    def refuses_token(self, token: Token, name: str, key: Key) -> Codes:
        """Return why *token* does not get *name* a certificate for *key*."""
        device, codes = self.devices.get(name), set[str]()
        if self.bought_before(token, name, key) is None:
            if token.bought is not None:
                codes.add("TOKEN_USED")
            elif token.voided:
                codes.add("TOKEN_VOID")
        codes |= self.refuses_key(key, device)
        if token.device not in (None, name):
            codes.add("TOKEN_DEVICE")
        if device is None:
            if token.device is None and self._is_promised(name):
                codes.add("NAME_TAKEN")
            return frozenset(codes | {WAITS} if codes and token.rules.asks else codes)
        if device.state is not State.REVOKED or token.device is None:  # A token of its own readmits it.
            codes |= device.ended()
        if token.device is None:
            codes |= device.withdrawn()
        if token.rules is not device.rules or (token.device is None and not self.is_its_key(device, key)):
            codes.add("NAME_TAKEN")
        if codes and token.rules.asks:
            codes.add(WAITS)
        return frozenset(codes)

    def refuses_claim(self, name: str, key: Key) -> Codes:
        """Return why a claim certificate does not get *name* one on trial for *key*, which is new."""
        device = self.devices.get(name)
        codes = set(self.refuses_key(key, device))
        if device is not None:
            codes |= {"NAME_TAKEN"} | device.ended() | device.withdrawn()
        elif self._is_promised(name):
            codes.add("NAME_TAKEN")
        return frozenset(codes)

    def refuses_renewal(self, presented: Certificate, key: Key) -> Codes:
        """Return why *presented* is not succeeded by one for *key*."""
        device, codes = presented.device, set(presented.device.ended())
        codes |= self.refuses_key(key, device) | _doubts(presented.key)
        if presented.on_trial and presented.reason is HOLD:
            codes |= device.withdrawn()
        elif presented.reason is not None:
            codes.add("CERTIFICATE_SUSPENDED" if presented.reason is HOLD else "CERTIFICATE_REVOKED")
        if presented.expired:
            codes |= device.withdrawn() if device.rules.grace else {"CERTIFICATE_EXPIRED"}
            if presented.of_revoked and device.rules.grace:
                codes.add("CERTIFICATE_REVOKED")
            newest = device.newest()
            if newest is not None and newest.key not in (presented.key, key) and not device.rules.repeats:
                codes.add("CERTIFICATE_EXPIRED")
        return frozenset(codes)

    def bought_before(self, token: Token, name: str, key: Key) -> Certificate | None:
        """Return what the same request has got already, if it still gets that."""
        bought = token.bought
        if bought is None or not token.rules.repeats or not bought.good:
            return None
        same = bought.device.name == name and bought.key is key and bought.device.newest(key) is bought
        return bought if same else None

    def given_before(self, device: Device, key: Key) -> Certificate | None:
        """Return what a device that comes back without a token of its own has already for *key*."""
        held = device.newest(key)
        return held if held is not None and device.rules.repeats and held.good else None

    def succeeded_before(self, presented: Certificate, key: Key) -> Certificate | None:
        """Return what the same renewal has got already, if it still gets that."""
        device = presented.device
        newest = self.given_before(device, key)
        if newest is None or device.certificates.index(newest) <= device.certificates.index(presented):
            return None
        return newest

    def replaced(self, token: Token, name: str) -> list[Certificate]:
        """Return which certificates of *name* end as superseded when *token* gets it another one."""
        device = self.devices.get(name)
        if device is None or token.device is None or not (device.rules.replaces or device.state is State.REVOKED):
            return []
        return [each for each in device.certificates if each.reason in (None, HOLD)]

    def issued(self, name: str, rules: Rules, new: Certificate) -> None:
        """Take note of a certificate, the first one of *name* or another."""
        device = self.devices.setdefault(name, new.device)
        assert device is new.device
        assert device.rules is rules
        device.state = State.ACTIVE
        device.certificates.append(new)
        new.key.owner = device

    def _is_promised(self, name: str) -> bool:
        return any(each.open and each.device == name for each in self.tokens)

    def is_its_key(self, device: Device, key: Key) -> bool:
        """Whether *device* comes back by having *key*."""
        held = device.newest(key)
        if held is None or held.reason is not None or not device.rules.repeats:
            return False
        newest = device.newest()
        return not held.expired or (newest is not None and newest.key is key)

    def refuses_key(self, key: Key, device: Device | None) -> Codes:
        """Return why nobody, or not *device*, is certified for *key*."""
        of_another = key.owner is not None and key.owner is not device
        compromised = key.owner is not None and any(
            each.key is key and each.reason is COMPROMISED for each in key.owner.certificates
        )
        return (frozenset({"KEY_REUSED"}) if of_another or compromised else NONE) | _doubts(key)

    # Operators

    def refuses_order(self, name: str | None) -> Codes:
        """Return why no token for *name* is made."""
        device = self.devices.get(name or "")
        ended = device is not None and device.state is State.DECOMMISSIONED
        return frozenset({"DEVICE_DECOMMISSIONED"}) if ended else NONE

    def revoke_device(self, device: Device, reason: RevocationReason, state: State = State.REVOKED) -> None:
        for each in device.certificates:
            if reason is COMPROMISED or not each.is_passed_over or each.reason is not None:
                self._end(each, reason)
        if device.state is not State.DECOMMISSIONED:
            device.state = state
        for token in self.tokens:
            if token.open and token.device == device.name:
                token.voided = True

    def revoke_certificate(self, certificate: Certificate, reason: RevocationReason) -> None:
        self._end(certificate, reason)
        if reason is COMPROMISED:
            for each in certificate.device.certificates:
                if each.key is certificate.key:
                    self._end(each, reason)

    def revoke_alone(self, certificate: Certificate, reason: RevocationReason) -> None:
        """Revoke it as superseded, or with its CA: nothing else follows from it."""
        self._end(certificate, reason)

    def refuses_suspension(self, target: Device | Certificate) -> Codes:
        if isinstance(target, Device):
            return self._is_over(target)
        if target.reason not in (None, HOLD):
            return frozenset({"REVOCATION_FINAL"})
        return frozenset({"ON_TRIAL"}) if target.on_trial else NONE

    def suspend(self, target: Device | Certificate) -> None:
        if isinstance(target, Device):
            target.state = State.SUSPENDED
            for each in target.certificates:
                if each.reason is None and not each.is_passed_over:
                    self.set_reason(each, HOLD)
            return
        target.by_itself = True
        if target.reason is None:
            self.set_reason(target, HOLD)

    def refuses_resumption(self, target: Device | Certificate) -> Codes:
        if isinstance(target, Device):
            return self._is_over(target)
        if target.reason is None:
            return NONE
        if target.reason is not HOLD:
            return frozenset({"REVOCATION_FINAL"})
        codes = {"ON_TRIAL"} if target.on_trial else set[str]()
        codes |= self._is_over(target.device)
        if target.device.state is State.SUSPENDED and not target.by_itself:
            codes.add("DEVICE_SUSPENDED")
        return frozenset(codes)

    def resume(self, target: Device | Certificate) -> None:
        if isinstance(target, Device):
            target.state = State.ACTIVE
        else:
            target.by_itself = False
            if target.device.state is State.SUSPENDED:
                return
        for each in target.certificates if isinstance(target, Device) else [target]:
            if each.reason is HOLD and not each.on_trial and not each.by_itself:
                self.set_reason(each, None)

    def _is_over(self, device: Device) -> Codes:
        over = device.state in (State.REVOKED, State.DECOMMISSIONED)
        return frozenset({"REVOCATION_FINAL"}) if over else NONE

    def _end(self, certificate: Certificate, reason: RevocationReason) -> None:
        changes = reason is COMPROMISED and certificate.reason is not COMPROMISED
        if certificate.reason in (None, HOLD) or changes:
            self.set_reason(certificate, reason)

    def set_reason(self, certificate: Certificate, reason: RevocationReason | None) -> None:
        certificate.reason = reason
        self.events += 1


def life_of(certificate: x509.Certificate) -> timedelta:
    return certificate.not_valid_after_utc - certificate.not_valid_before_utc


def _doubts(key: Key) -> Codes:
    """Return why nothing is issued for *key* nor on its word: it has a certificate that was suspended by itself."""
    held = [] if key.owner is None else [each for each in key.owner.certificates if each.key is key and each.by_itself]
    return frozenset("CERTIFICATE_SUSPENDED" if each.reason is HOLD else "KEY_REUSED" for each in held)
