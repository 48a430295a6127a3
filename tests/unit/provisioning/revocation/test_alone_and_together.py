"""What is done to one device or certificate has the same effect, and is told and refused alike, as a batch of one.

A single one is ended, suspended or resumed by code of its own, for speed, if it has few certificates; the batch is its
twin. Two devices live the same life, each by one kind of request, and are compared after each.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Refused, RefusedTogether
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.pki.serial_number import serial_text
from provisioning.revocation.reasons import OPERATOR_REASONS
from provisioning.store import audit, certificates_of_device, devices, unfinished_ends
from tests.support.examples import IS_THOROUGH
from tests.support.fleet import Fleet, successor_csr
from tests.support.many_certificates import make_portions_small
from tests.support.requests import csr_der

ALONE, TOGETHER = "alone", "together"
STEPS = 60
SEEDS = [0, 5]
"""Of the first six those that find, together, every planted fault that any of them finds."""


@dataclass
class Life:
    """One of the two devices."""

    fleet: Fleet
    name: str
    role: Role
    issued: list[x509.Certificate] = field(default_factory=list)

    @property
    def serials(self) -> list[str]:
        return [serial_text(each.serial_number) for each in self.issued]

    async def enrol(self) -> None:
        group = "north" if self.role is Role.DEVICE else None
        token = TokenCredential(self.name, await self.fleet.token(self.name, group, self.role))
        self.issued.append(await self.fleet.enrolment.enrol(csr_der(names=[self.name]), token))

    async def renew(self) -> None:
        self.issued.append(await self.fleet.reenrol(self.issued[-1], successor_csr(self.issued[-1])))

    async def token(self) -> None:
        """Have a token bound to it, and, if it is an operator, make one."""
        group = "north" if self.role is Role.DEVICE else None
        await self.fleet.token(self.name, group, self.role)
        await self.fleet.token_service.create(TokenOrder([f"of-{self.name}"], "north", Role.DEVICE), by=self.name)

    async def end(self, what: str, which: int | None, reason: RevocationReason, since: Any) -> Any:
        """Have *what* done to the device, or to the certificate with that number."""
        service: Any = self.fleet.suspension if what in {"suspend", "resume"} else self.fleet.revocation
        grounds = {"reason": reason, "invalidity_date": since} if what == "revoke" else {}
        if self.name.startswith(TOGETHER):
            names, serials = ([self.name], []) if which is None else ([], [self.serials[which]])
            batch = getattr(service, f"{what}_batch")
            named = (names,) if what == "decommission" else (names, serials)
            return await batch(*named, **grounds, by="anna")
        if what == "decommission":
            return await service.decommission(self.name, by="anna")
        kind, named_one = ("device", self.name) if which is None else ("serial", self.serials[which])
        return await getattr(service, f"{what}_{kind}")(named_one, **grounds, by="anna")

    def plain(self, text: str) -> str:
        """Return *text* without what differs between the two devices."""
        for number, serial in enumerate(self.serials):
            text = text.replace(serial, f"certificate {number}")
        return text.replace(self.name, "it")

    async def became(self, request: Callable[[Life], Awaitable[Any]]) -> Any:
        """Return how a request ended, and everything that the store knows of the device then."""
        before = await self.fleet.database.read(lambda connection: audit.about(connection, "", 1))
        try:
            outcome = await request(self)
        except RefusedTogether as together:
            (refused,) = together.items
            told: Any = (refused.code, self.plain(refused.detail))
        except Refused as refused_alone:
            told = (refused_alone.code, self.plain(refused_alone.detail))
        else:
            some = [] if outcome is None else getattr(outcome, "revoked", None) or getattr(outcome, "released", [])
            told = (
                outcome is not None and outcome.changed,
                tuple(
                    (self.plain(each.serial), getattr(each, "reason", None), getattr(each, "invalidity_date", None))
                    for each in some
                ),
            )

        def look(connection: Connection) -> Any:
            device = devices.find(connection, self.name)
            if device is None:
                return None
            revocations = [each.revocation for each in certificates_of_device.every(connection, device.id)]
            return (
                device.state,
                [
                    (each.reason, each.revoked_at, each.invalidity_date) if each is not None else None
                    for each in revocations
                ],
                unfinished_ends.of_device(connection, device.id),
                [
                    (each.action, self.plain(json.dumps(json.loads(each.details), sort_keys=True)))
                    for each in audit.entries(connection, before[-1].number if before else 0, 9999)
                    if each.subject == self.name and "signing" not in each.action and "signed" not in each.action
                ],
            )

        return [told, await self.fleet.database.read(look)]


@pytest.mark.parametrize("in_portions", [False, True], ids=["at once", "in portions"])
@pytest.mark.hypothesis
@pytest.mark.parametrize("seed", range(6) if IS_THOROUGH else SEEDS)
async def test_one_alone_and_a_batch_of_one_are_the_same(
    fleet: Fleet, seed: int, in_portions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_portions:
        make_portions_small(monkeypatch)
    random = Random(seed)
    reasons = sorted(OPERATOR_REASONS)
    done: set[str] = set()
    pair: list[Life] = []
    for step in range(STEPS):
        if step % 20 == 0:
            role = random.choice([Role.DEVICE, Role.OPERATOR])
            pair = [Life(fleet, f"{how}-{step}", role) for how in (ALONE, TOGETHER)]
        what = random.choice(["enrol", "renew", "token", "later", *["suspend", "resume", "revoke"] * 3, "decommission"])
        if not pair[0].issued:
            what = "enrol"
        if what == "decommission" and step % 20 < 15:
            continue
        if what == "later":
            fleet.clock.advance(timedelta(days=random.choice([1, 31])))
            continue
        which = random.randrange(len(pair[0].issued)) if pair[0].issued and random.random() < 0.5 else None
        reason = random.choice(reasons)
        since = random.choice([None, fleet.clock() - timedelta(hours=1)])

        async def request(life: Life) -> Any:
            if what in {"enrol", "renew", "token"}:
                return await getattr(life, what)()
            return await life.end(what, None if what == "decommission" else which, reason, since)

        alone, together = [await life.became(request) for life in pair]
        done.add(f"{what} {'refused' if isinstance(alone[0][0], Code) else 'done'}")
        if in_portions:  # Of very many certificates a batch tells the newest only, and those first.
            (alone[0], some), (together[0], few) = _parted(alone[0]), _parted(together[0])
            assert set(few) <= set(some), (step, what, which, reason)
            assert bool(few) == bool(some), (step, what, which, reason)
        assert alone == together, (step, what, which, reason)
    assert {"suspend done", "resume done", "revoke done", "suspend refused", "resume refused"} <= done


def _parted(told: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return an outcome without its facts, and those; a refusal has none."""
    first, facts = told
    return (told, ()) if isinstance(first, Code) else (first, facts)
