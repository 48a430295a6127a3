"""An answer that is lost after the COMMIT, and the same request again: the same certificate, by every way.

On PostgreSQL the connection breaks between the COMMIT and what the server says of it; on SQLite the answer gets lost on
its way to the client, as when the service is killed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Final

import pytest
from cryptography import x509
from sqlalchemy import text
from sqlalchemy.engine import make_url

from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import Question, TokenCredential, Verdict
from provisioning.enrolment.device_list import DeviceListService
from provisioning.errors import Code, Pending, Refused
from provisioning.pki.keys import PrivateKey, generate_key, spki_fingerprint
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.serial_number import serial_text
from provisioning.store.audit_findings import findings
from tests.support.cut_connections import Way
from tests.support.fleet import Fleet, open_fleet, successor_csr
from tests.support.manufacturer import Manufacturer
from tests.support.requests import NOON, csr_der
from tests.support.ways import HOUR, claim, enrol, group, is_good, register

MINUTE = timedelta(minutes=1)
SECOND = timedelta(seconds=1)
Ask = Callable[[], Awaitable[x509.Certificate]]
Lose = Callable[[Ask], Awaitable[None]]


class Asker:
    """Makes ready what a way wants, and returns a request that may be sent again."""

    def __init__(self, fleet: Fleet, direct: Fleet) -> None:
        """Ask *fleet*; what operators do is done through *direct*."""
        self.fleet = fleet
        self.direct = direct
        self.asked: Callable[[], None] = lambda: None
        """Called when a webhook is asked."""

    async def token(self) -> Ask:
        await group(self.direct, "token", name="by-token")
        token = TokenCredential("t-1", await self.direct.token("t-1", "by-token"))
        return partial(enrol, self.fleet, "t-1", key=generate_key(), token=token)

    async def webhook(self) -> Ask:
        await group(self.direct, "token+webhook", name="by-webhook", webhook_url="http://127.0.0.1:1/")

        async def ask(question: Question) -> Verdict:
            self.asked()
            return Verdict(question, allowed=True)

        self.fleet.enrolment.service._ask = ask
        token = TokenCredential("w-1", await self.direct.token("w-1", "by-webhook"))
        return partial(enrol, self.fleet, "w-1", key=generate_key(), token=token)

    async def claim(self) -> Ask:
        await group(self.direct, "claim", name="by-claim")
        shown = await claim(self.direct, name="first", group_name="by-claim")
        return partial(enrol, self.fleet, "c-1", key=generate_key(), certificate=shown)

    async def manufacturer(self) -> Ask:
        await group(self.direct, "manufacturer")
        acme = Manufacturer(begin=NOON)
        await register(self.direct, acme, prefix="acme-")
        idevid, _ = acme.idevid("SN1")
        return partial(enrol, self.fleet, "acme-SN1", key=generate_key(), certificate=idevid)

    async def listed(self) -> Ask:
        await group(self.direct, "listed", name="by-list")
        key = generate_key()
        service = DeviceListService(self.direct.database, self.direct.clock)
        await service.add("by-list", [("l-1", spki_fingerprint(key.public_key()).hex())], by="admin")
        return partial(enrol, self.fleet, "l-1", key=key, label="by-list")

    async def approval(self) -> Ask:
        await group(self.direct, "approval", name="by-approval")
        ask = partial(enrol, self.fleet, "p-1", key=generate_key(), label="by-approval")
        with pytest.raises(Pending):
            await ask()
        service = ApprovalService(self.direct.database, self.direct.clock)
        (waiting,), _ = await service.page(limit=9, after=0, group=None, state=None)
        await service.decide(waiting.id, approve=True, by="boss")
        return ask

    async def renewal(self) -> Ask:
        return await self._renewal("r-1", None)

    async def rekey(self) -> Ask:
        return await self._renewal("k-1", generate_key())

    async def _renewal(self, name: str, new: PrivateKey | None) -> Ask:
        key = generate_key()
        token = TokenCredential(name, await self.direct.token(name, "by-token"))
        first = await enrol(self.direct, name, key=key, token=token)
        return partial(self.fleet.reenrol, first, successor_csr(first, new or key))

    async def activation(self) -> Ask:
        shown = await claim(self.direct, name="second", group_name="by-claim")
        key = generate_key()
        trial = await enrol(self.direct, "c-2", key=key, certificate=shown)
        return partial(self.fleet.reenrol, trial, successor_csr(trial, key))


WAYS: Final = [each for each in vars(Asker) if not each.startswith("_")]


@asynccontextmanager
async def losing(url: str, *, passed_on: bool) -> AsyncIterator[tuple[Asker, Lose]]:
    async with AsyncExitStack() as stack:
        direct = await stack.enter_async_context(open_fleet(url))
        if url.startswith("sqlite"):

            async def forget(ask: Ask) -> None:
                if passed_on:
                    await ask()

            yield Asker(direct, direct), forget
            return
        way = await stack.enter_async_context(Way(int(make_url(url).port or 0)))
        through = make_url(url).set(port=way.port).render_as_string(hide_password=False)
        fleet = await stack.enter_async_context(open_fleet(through, direct.authority))
        async with fleet.serial_numbers.reservation(fleet.clock()):
            pass  # A block is there: its COMMIT is not the one that is lost.

        asker = Asker(fleet, direct)

        async def cut(ask: Ask) -> None:
            way.cut(passed_on=passed_on)
            asker.asked = partial(way.cut, passed_on=passed_on)  # The first transaction was for the question only.
            with pytest.raises(Refused) as caught:
                await ask()
            assert way.was_cut
            assert caught.value.code is Code.UNAVAILABLE
            asker.asked = lambda: None

        yield asker, cut


async def certificates(fleet: Fleet) -> int:
    count = text("SELECT count(*) FROM certificates")
    number: int = await fleet.database.read(lambda connection: connection.execute(count).scalar_one())
    return number


@pytest.mark.parametrize("passed_on", [False, True], ids=["not heard", "answer not heard"])
async def test_who_asks_again_has_the_certificate_that_there_is_by_every_way(
    store_url: str, *, passed_on: bool
) -> None:
    async with losing(store_url, passed_on=passed_on) as (asker, lose):
        for name in WAYS:
            ask = await getattr(asker, name)()
            before = await certificates(asker.direct)
            await lose(ask)
            assert await certificates(asker.direct) == before + passed_on, name
            certificate = await ask()
            assert await ask() == certificate, name
            assert await certificates(asker.direct) == before + 1, name
            assert await is_good(asker.direct, certificate) is (name != "claim"), name
        assert await asker.direct.database.read(lambda connection: list(findings(connection))) == []


async def test_a_renewal_is_answered_again_for_a_while_with_what_came_after_what_is_presented(fleet: Fleet) -> None:
    await group(fleet, "token", name="north", same_key_window=HOUR, certificates_per_minute=5)
    keys = [generate_key() for _ in range(2)]
    first = await fleet.enrol("meter-1", csr_der(keys[0], names=["meter-1"]))

    async def renewed(presented: x509.Certificate, key: PrivateKey = keys[0]) -> x509.Certificate:
        return await fleet.reenrol(presented, successor_csr(presented, key))

    second = await renewed(first)
    assert second != first
    third = await renewed(second)
    assert third not in (first, second), "what is presented is never its own successor"
    assert await renewed(second) == await renewed(first) == third, "and nothing is counted"
    fourth = await renewed(first, keys[1])
    assert fourth not in (first, second, third)
    assert await renewed(first, keys[1]) == fourth
    await fleet.revocation.revoke_serial(serial_text(third.serial_number), RevocationReason.SUPERSEDED, by="boss")
    fifth = await renewed(first)
    assert fifth not in (first, second, third, fourth), "one that is revoked is no answer"
    fleet.clock.advance(HOUR - SECOND)
    assert await renewed(first) == fifth
    fleet.clock.advance(SECOND)
    assert await renewed(first) != fifth, "the hour is over"


async def test_without_a_window_each_renewal_is_another_and_a_trial_never_is_an_answer(fleet: Fleet) -> None:
    await group(fleet, "token", name="north", same_key_window=timedelta())
    certificate, key = await fleet.enrol("meter-1"), generate_key()
    request = successor_csr(certificate)
    assert await fleet.reenrol(certificate, request) != await fleet.reenrol(certificate, request)
    await group(fleet, "claim", same_key_window=MINUTE)
    shown = await claim(fleet)
    trial = await enrol(fleet, "meter-2", key=key, certificate=shown)
    fleet.clock.advance(MINUTE)
    newer = await enrol(fleet, "meter-2", key=key, certificate=shown)
    assert newer != trial
    activated = await fleet.reenrol(trial, successor_csr(trial, key))
    assert activated != newer
    assert await is_good(fleet, activated)
