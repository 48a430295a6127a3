"""Remembered OCSP answers about a device that was shut out, and whose certificates are not revoked yet."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from cryptography.x509 import ocsp

from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.revocation.service import RevocationService
from provisioning.revocation.shut_out import ShutOut
from provisioning.revocation.suspension import SuspensionService
from tests.support.fleet import Fleet
from tests.support.many_certificates import Died, dying_after, events, many_for_key, many_of, serials_of
from tests.support.responding import Responding

COMPROMISED = RevocationReason.KEY_COMPROMISE


pytestmark = pytest.mark.usefixtures("small_portions")


Doing = Callable[[RevocationService, SuspensionService], Coroutine[Any, Any, object]]
DOINGS: dict[str, Doing] = {
    "revoke": lambda revocation, _: revocation.revoke_device("meter-1", COMPROMISED, by="anna"),
    "revoke in a batch": lambda revocation, _: revocation.revoke_batch(["meter-1"], [], COMPROMISED, by="anna"),
    "decommission in a batch": lambda revocation, _: revocation.decommission_batch(["meter-1"], by="anna"),
    "suspend": lambda _, suspension: suspension.suspend_device("meter-1", by="anna"),
    "suspend in a batch": lambda _, suspension: suspension.suspend_batch(["meter-1"], [], by="anna"),
}


@pytest.mark.parametrize("doing", DOINGS)
async def test_a_remembered_answer_is_forgotten_before_its_portion(fleet: Fleet, doing: str) -> None:
    every = await many_of(fleet)
    responding = await Responding.on(fleet)
    assert (await responding.ask(every[0])).certificate_status == ocsp.OCSPCertStatus.GOOD
    revocation = responding.revocation
    with dying_after(0), pytest.raises(Died):
        await DOINGS[doing](revocation, SuspensionService(fleet.database, fleet.clock, (), revocation.portions))
    assert await events(fleet) == [], "none is revoked yet"
    assert (await responding.ask(every[0])).certificate_status == ocsp.OCSPCertStatus.REVOKED


TOGETHER: dict[str, Callable[[RevocationService, SuspensionService, str], Coroutine[Any, Any, object]]] = {
    "revoke": lambda end, _, __: end.revoke_batch(["meter-1", "meter-2"], [], COMPROMISED, by="anna"),
    "revoke a key": lambda end, _, serial: end.revoke_batch(["meter-2"], [serial], COMPROMISED, by="anna"),
    "decommission": lambda end, _, __: end.decommission_batch(["meter-1", "meter-2"], by="anna"),
    "suspend": lambda _, hold, __: hold.suspend_batch(["meter-1", "meter-2"], [], by="anna"),
}


@pytest.mark.parametrize("doing", TOGETHER)
async def test_a_remembered_answer_is_forgotten_before_the_feed_is_waited_for(fleet: Fleet, doing: str) -> None:
    """For what a batch does at once it waits up to a second, in which what follows in portions is not good either."""
    every = await many_for_key(fleet, generate_key())
    await fleet.enrol("meter-2")
    responding = await Responding.on(fleet)
    responder = responding.responder
    assert (await responding.ask(every[0])).certificate_status == ocsp.OCSPCertStatus.GOOD
    meanwhile = []

    async def heard(_sequence: int) -> None:
        meanwhile.append((await responding.ask(every[0])).certificate_status)

    end = RevocationService(fleet.database, fleet.clock, (responder.forget_changed,), responder.forget_all, heard)
    hold = SuspensionService(fleet.database, fleet.clock, (responder.forget_changed,), end.portions, heard)
    await TOGETHER[doing](end, hold, serials_of(every)[-1])
    assert meanwhile == [ocsp.OCSPCertStatus.REVOKED]


async def test_another_process_forgets_what_it_remembers_too(fleet: Fleet) -> None:
    every = await many_of(fleet)
    responding = await Responding.on(fleet)
    there = ShutOut(fleet.database, responding.responder.forget_all)
    await there.look()
    assert (await responding.ask(every[0])).certificate_status == ocsp.OCSPCertStatus.GOOD
    with dying_after(0), pytest.raises(Died):
        await fleet.suspension.suspend_device("meter-1", by="anna")
    assert (await responding.ask(every[0])).certificate_status == ocsp.OCSPCertStatus.GOOD, "it has not heard"
    await there.look()
    assert (await responding.ask(every[0])).certificate_status == ocsp.OCSPCertStatus.REVOKED
