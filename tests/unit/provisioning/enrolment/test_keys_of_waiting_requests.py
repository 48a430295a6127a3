"""Nobody is asked about a request whose key gets no certificate in the end: its device is told at once."""

from __future__ import annotations

import pytest

from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import Question, TokenCredential, Verdict
from provisioning.errors import Code, Pending, Refused
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.store.groups import NewKey
from tests.support.fleet import Fleet
from tests.support.requests import csr_der
from tests.support.ways import enrol, group, pending, refusal


async def waiting(fleet: Fleet) -> list[str]:
    found, _ = await ApprovalService(fleet.database, fleet.clock).page(limit=99, after=0, group=None, state=None)
    return [f"{each.request.name} {each.state}" for each in found]


async def test_a_request_with_another_devices_key_waits_for_nobody(fleet: Fleet) -> None:
    """The device asked again for days, an operator approved, and the next answer was that its key is refused."""
    await group(fleet, "approval", "token")
    key = generate_key()
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    await enrol(fleet, "meter-1", key=key, token=token)
    with pytest.raises(Refused, match="KEY_REUSED: another device uses this key: make a new key") as caught:
        await enrol(fleet, "meter-2", key=key, label="line")
    assert "meter-1" not in caught.value.detail
    assert await waiting(fleet) == []


async def test_nor_is_a_webhook_asked_about_it(fleet: Fleet) -> None:
    await group(fleet, "token+webhook", webhook_url="http://127.0.0.1:1/")
    asked: list[str] = []

    async def ask(question: Question) -> Verdict:
        asked.append(question.device)
        return Verdict(question, allowed=True)

    fleet.enrolment.service._ask = ask
    await group(fleet, "token", name="other")
    key = generate_key()
    await enrol(fleet, "meter-1", key=key, token=TokenCredential("meter-1", await fleet.token("meter-1", "other")))
    token = TokenCredential("meter-2", await fleet.token("meter-2", "line"))
    assert await refusal(fleet, "meter-2", key=key, token=token) is Code.KEY_REUSED
    assert asked == []
    await enrol(fleet, "meter-2", token=token)
    assert asked == ["meter-2"]


async def test_a_request_with_a_compromised_key_of_its_own_waits_for_nobody(fleet: Fleet) -> None:
    await group(fleet, "approval", "token", new_key=NewKey.APPROVE)
    key = generate_key()
    await enrol(fleet, "meter-1", key=key, token=TokenCredential("meter-1", await fleet.token("meter-1", "line")))
    await fleet.revocation.revoke_device("meter-1", RevocationReason.KEY_COMPROMISE, by="admin")
    assert await refusal(fleet, "meter-1", key=key, label="line") is Code.KEY_REUSED
    assert await waiting(fleet) == []


async def test_a_request_that_waited_when_its_key_became_another_devices_is_not_approved(fleet: Fleet) -> None:
    await group(fleet, "approval", "token")
    service = ApprovalService(fleet.database, fleet.clock)
    key = generate_key()
    first, second = [await pending(fleet, f"meter-{each}", key=key, label="line") for each in (1, 2)]
    await service.decide(first, approve=True, by="boss")
    await enrol(fleet, "meter-1", key=key, label="line")
    with pytest.raises(
        Refused, match=rf"KEY_REUSED: request {second}, .* \(another device uses .*approval deny {second}"
    ):
        await service.decide(second, approve=True, by="boss")
    assert await refusal(fleet, "meter-2", key=key, label="line") is Code.KEY_REUSED
    assert await waiting(fleet) == ["meter-1 used", "meter-2 pending"]
    await service.decide(second, approve=False, by="boss")


async def test_a_key_that_has_signed_a_request_for_another_may_be_a_devices(fleet: Fleet) -> None:
    """It gets no certificate: only whoever has it is recognised by it."""
    await group(fleet, "approval", "token", server_keys=True)
    key = generate_key()
    await enrol(fleet, "meter-1", key=key, token=TokenCredential("meter-1", await fleet.token("meter-1", "line")))
    with pytest.raises(Pending):
        await fleet.enrolment.service.enrol_with_server_key(csr_der(key, names=["meter-2"]), None, "line")
    assert await waiting(fleet) == ["meter-2 pending"]
    service = ApprovalService(fleet.database, fleet.clock)
    (found,), _ = await service.page(limit=9, after=0, group=None, state=None)
    await service.decide(found.id, approve=True, by="boss")
    await fleet.enrolment.service.enrol_with_server_key(csr_der(key, names=["meter-2"]), None, "line")
