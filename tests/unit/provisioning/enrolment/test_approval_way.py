"""Approval: who waits for an operator, what he is shown, and that he decides about that and nothing else."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta

import pytest

from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import TlsConnection, TokenCredential
from provisioning.enrolment.tokens import MAXIMUM_TTL, TokenOrder
from provisioning.errors import Code, Pending, Refused
from provisioning.pki.keys import generate_key
from provisioning.store import audit
from provisioning.store.approvals import ApprovalState
from provisioning.store.audit import Action
from provisioning.store.groups import NewKey
from tests.support.fleet import Fleet, successor_csr
from tests.support.ways import HOUR, claim, enrol, group, is_good, pending, refusal, who_signed_for


async def test_a_request_waits_for_an_operator_and_is_recognised_when_it_comes_again(fleet: Fleet) -> None:
    await group(fleet, "approval")
    service = ApprovalService(fleet.database, fleet.clock)
    key = generate_key()
    number = await pending(fleet, "meter-1", key=key, label="line")
    assert await pending(fleet, "meter-1", key=key, label="line") == number
    await service.decide(number, approve=True, by="boss")
    certificate = await enrol(fleet, "meter-1", key=key, label="line")
    assert await enrol(fleet, "meter-1", key=key, label="line") == certificate
    # Another key of the same name is another request, and becomes an existing device by no approval here.
    third = generate_key()
    other = await pending(fleet, "meter-1", key=third, label="line")
    assert other != number
    await service.decide(other, approve=True, by="boss")
    with pytest.raises(Refused, match="group line lets no device have another key"):
        await enrol(fleet, "meter-1", key=third, label="line")
    with pytest.raises(Refused, match="APPROVAL_DECIDED"):
        await service.decide(number, approve=False, by="boss")
    # A decision is worth one certificate.
    fleet.clock.advance(HOUR)
    assert await pending(fleet, "meter-1", key=key, label="line") > other


async def test_a_decision_that_bought_what_has_not_begun_buys_the_same_key_what_has(fleet: Fleet) -> None:
    fleet.clock.advance(2 * HOUR)
    await group(fleet, "approval")
    service = ApprovalService(fleet.database, fleet.clock)
    key = generate_key()
    number = await pending(fleet, "meter-1", key=key, label="line")
    await service.decide(number, approve=True, by="boss")
    await enrol(fleet, "meter-1", key=key, label="line")
    fleet.clock.advance(-HOUR)  # The clock was set back.
    certificate = await enrol(fleet, "meter-1", key=key, label="line")
    assert certificate.not_valid_before_utc < fleet.clock()
    assert await enrol(fleet, "meter-1", key=key, label="line") == certificate
    await pending(fleet, "meter-1", label="line")


async def test_an_approval_counts_though_the_certificate_before_it_is_of_a_time_to_come(fleet: Fleet) -> None:
    await group(fleet, "approval", new_key=NewKey.APPROVE)
    service = ApprovalService(fleet.database, fleet.clock)
    key = generate_key()
    fleet.clock.advance(24 * HOUR)
    await service.decide(await pending(fleet, "meter-1", key=key, label="line"), approve=True, by="boss")
    await enrol(fleet, "meter-1", key=key, label="line")
    fleet.clock.advance(-24 * HOUR)  # The clock was set back.
    other = generate_key()
    await service.decide(await pending(fleet, "meter-1", key=other, label="line"), approve=True, by="boss")
    certificate = await enrol(fleet, "meter-1", key=other, label="line")
    assert certificate.not_valid_before_utc <= fleet.clock()
    assert certificate.public_key() == other.public_key()


async def test_an_approval_that_a_clock_ahead_has_given_is_none_of_another_key_for_who_came_in_since(
    fleet: Fleet,
) -> None:
    await group(fleet, "approval", "token", new_key=NewKey.APPROVE)
    service = ApprovalService(fleet.database, fleet.clock)
    stranger = generate_key()
    fleet.clock.advance(24 * HOUR)
    await service.decide(await pending(fleet, "meter-1", key=stranger, label="line"), approve=True, by="boss")
    fleet.clock.advance(-24 * HOUR)  # The clock was set back.
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    await enrol(fleet, "meter-1", token=token)
    await pending(fleet, "meter-1", key=stranger, label="line")


async def test_the_same_request_several_times_at_once_is_one_request(fleet: Fleet) -> None:
    await group(fleet, "approval")
    key = generate_key()

    async def attempt() -> str:
        try:
            await enrol(fleet, "meter-1", key=key, label="line")
        except Pending:
            return "pending"
        except Refused as refused:
            return refused.code
        return "enrolled"

    outcomes = set(await asyncio.gather(*(attempt() for _ in range(8))))
    assert "pending" in outcomes
    assert outcomes <= {"pending", Code.UNAVAILABLE}, "on PostgreSQL the second may have to ask again"
    found, _ = await ApprovalService(fleet.database, fleet.clock).page(limit=9, after=0, group="line", state=None)
    assert len(found) == 1


async def test_a_denied_request_is_refused_until_it_is_approved(fleet: Fleet) -> None:
    await group(fleet, "approval")
    service = ApprovalService(fleet.database, fleet.clock)
    key = generate_key()
    number = await pending(fleet, "meter-1", key=key, label="line")
    await service.decide(number, approve=False, by="boss")
    assert await refusal(fleet, "meter-1", key=key, label="line") is Code.APPROVAL_DENIED
    with pytest.raises(Refused, match=rf"was denied by boss on .*approval approve {number} --despite-denial"):
        await service.decide(number, approve=True, by="anna")
    assert await refusal(fleet, "meter-1", key=key, label="line") is Code.APPROVAL_DENIED
    await service.decide(number, approve=True, by="anna", despite_denial=True)
    await enrol(fleet, "meter-1", key=key, label="line")
    with pytest.raises(Refused, match="APPROVAL_UNKNOWN"):
        await service.decide(999, approve=True, by="boss")


async def test_a_decision_is_about_one_request_and_no_other_that_waits(fleet: Fleet) -> None:
    await group(fleet, "approval")
    service = ApprovalService(fleet.database, fleet.clock)
    keys = [generate_key() for _ in range(4)]
    numbers = [await pending(fleet, f"meter-{place}", key=key, label="line") for place, key in enumerate(keys)]
    await service.decide(numbers[0], approve=True, by="boss")
    await service.decide(numbers[1], approve=False, by="boss")
    assert await pending(fleet, "meter-2", key=keys[2], label="line") == numbers[2]
    await service.decide(numbers[3], approve=True, by="boss")
    await enrol(fleet, "meter-3", key=keys[3], label="line")
    found, _ = await service.page(limit=9, after=0, group="line", state=None)
    assert [each.state.value for each in found] == ["approved", "denied", "pending", "used"]
    await enrol(fleet, "meter-0", key=keys[0], label="line")
    assert await refusal(fleet, "meter-1", key=keys[1], label="line") is Code.APPROVAL_DENIED


async def test_an_approval_beside_a_claim_shows_the_claim(fleet: Fleet) -> None:
    await group(fleet, "claim+approval")
    shared = await claim(fleet)
    assert await refusal(fleet, "meter-1", label="line") is Code.WAY_REFUSED
    key = generate_key()
    number = await pending(fleet, "meter-1", key=key, certificate=shared)
    service = ApprovalService(fleet.database, fleet.clock)
    (waiting,), _ = await service.page(limit=9, after=0, group="line", state=None)
    assert waiting.request.evidence == "claim batch"
    await service.decide(number, approve=True, by="boss")
    certificate = await enrol(fleet, "meter-1", key=key, certificate=shared)
    assert not await is_good(fleet, certificate), "what a claim buys is on trial, whoever else has vouched"
    await fleet.reenrol(certificate, successor_csr(certificate))
    assert await who_signed_for(fleet) == ["boss", "meter-1"], "who has decided, not who made the claim"


async def test_a_queue_that_is_full_takes_no_more_and_forgets_what_nobody_decides(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provisioning.enrolment.ways.approval.MAXIMUM_PENDING", 2)
    await group(fleet, "approval")
    key = generate_key()
    for number in (1, 2):
        await pending(fleet, f"meter-{number}", key=key if number == 1 else None, label="line")
    assert await refusal(fleet, "meter-3", label="line") is Code.APPROVALS_FULL
    await group(fleet, "approval", name="other")
    await pending(fleet, "meter-9", label="other")
    await pending(fleet, "meter-1", key=key, label="line")
    fleet.clock.advance(timedelta(days=7))
    assert await refusal(fleet, "meter-3", label="line") is Code.APPROVALS_FULL
    fleet.clock.advance(timedelta(seconds=1))
    await pending(fleet, "meter-3", label="line")


async def test_what_is_decided_takes_no_place_and_is_not_forgotten_nor_is_another_group_s(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provisioning.enrolment.ways.approval.MAXIMUM_PENDING", 2)
    for name in ("line", "other"):
        await group(fleet, "approval", name=name)
    service = ApprovalService(fleet.database, fleet.clock)
    approved, denied, elsewhere = (generate_key() for _ in range(3))
    numbers = [await pending(fleet, name, key=key, label="line") for name, key in (("a", approved), ("d", denied))]
    for number, approve in zip(numbers, (True, False), strict=True):
        await service.decide(number, approve=approve, by="boss")
    waits = await pending(fleet, "meter-9", key=elsewhere, label="other")
    found, _ = await service.page(limit=9, after=0, group="other", state=None)
    assert [each.id for each in found] == [waits]
    found, _ = await service.page(limit=9, after=numbers[0], group="line", state=None)
    assert [each.id for each in found] == numbers[1:]
    for name in ("meter-1", "meter-2"):
        await pending(fleet, name, label="line")
    fleet.clock.advance(timedelta(days=7, seconds=1))
    await pending(fleet, "meter-3", label="line")
    assert await pending(fleet, "meter-9", key=elsewhere, label="other") == waits
    assert await refusal(fleet, "d", key=denied, label="line") is Code.APPROVAL_DENIED
    await enrol(fleet, "a", key=approved, label="line")


async def test_one_address_does_not_take_every_place_of_the_queue(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provisioning.enrolment.ways.approval.MAXIMUM_PENDING", 8)
    await group(fleet, "approval")
    key = generate_key()
    got = {}
    for place, address in enumerate(("192.0.2.1", "2001:db8::1", "2001:db8::2", "::ffff:192.0.2.1", "192.0.2.2")):
        got[address] = 0
        here = TlsConnection("TLSv1.3", address=address)
        while True:
            with pytest.raises((Pending, Refused)) as caught:
                await enrol(fleet, f"m-{place}-{got[address]}", key=key, label="line", connection=here)
            if isinstance(caught.value, Refused):
                assert caught.value.code is Code.APPROVALS_FULL
                break
            got[address] += 1
    assert list(got.values()) == [4, 2, 0, 0, 1], "half of what is free; an address in other clothes is the same one"
    found, _ = await ApprovalService(fleet.database, fleet.clock).page(limit=9, after=0, group="line", state=None)
    assert {each.request.asked_from for each in found} == {"192.0.2.1", "192.0.2.2", "2001:db8::/64"}


async def test_the_number_of_a_request_that_was_removed_is_nobody_else_s(fleet: Fleet) -> None:
    await group(fleet, "approval")
    shown = await pending(fleet, "meter-1", label="line")
    fleet.clock.advance(timedelta(days=7, seconds=1))
    assert await pending(fleet, "intruder", label="line") > shown, "the old one goes as the new one comes"
    with pytest.raises(Refused, match="APPROVAL_UNKNOWN"):
        await ApprovalService(fleet.database, fleet.clock).decide(shown, approve=True, by="boss")


async def test_an_operator_may_approve_a_new_key_of_a_device_that_exists(fleet: Fleet) -> None:
    await group(fleet, "claim", "token", new_key=NewKey.APPROVE)
    shared = await claim(fleet)
    old = await enrol(fleet, "meter-1", token=TokenCredential("meter-1", await fleet.token("meter-1", "line")))
    key = generate_key()
    number = await pending(fleet, "meter-1", key=key, certificate=shared)
    (waiting,), _ = await ApprovalService(fleet.database, fleet.clock).page(limit=9, after=0, group="line", state=None)
    assert waiting.request.evidence == "claim batch; the name is enrolled already"
    assert await is_good(fleet, old)
    await ApprovalService(fleet.database, fleet.clock).decide(number, approve=True, by="boss")
    trial = await enrol(fleet, "meter-1", key=key, certificate=shared)
    new = await fleet.reenrol(trial, successor_csr(trial))
    assert (await is_good(fleet, old), await is_good(fleet, new)) == (False, True)


async def test_an_approval_does_not_bring_back_a_key_that_another_approval_has_replaced(fleet: Fleet) -> None:
    await group(fleet, "approval", new_key=NewKey.APPROVE)
    service = ApprovalService(fleet.database, fleet.clock)
    keys = [generate_key(), generate_key()]
    for key in keys:
        await service.decide(await pending(fleet, "meter-1", key=key, label="line"), approve=True, by="boss")
        certificate = await enrol(fleet, "meter-1", key=key, label="line")
    number = await pending(fleet, "meter-1", key=keys[0], label="line")
    assert await is_good(fleet, certificate)
    await service.decide(number, approve=True, by="boss")
    await enrol(fleet, "meter-1", key=keys[0], label="line")
    assert not await is_good(fleet, certificate)


async def test_an_approval_of_another_key_is_spent_and_recorded_once(fleet: Fleet) -> None:
    """It is the way in and the decision about the new key, both."""
    await group(fleet, "approval", new_key=NewKey.APPROVE)
    service = ApprovalService(fleet.database, fleet.clock)
    numbers = []
    for key in (generate_key(), generate_key()):
        numbers.append(await pending(fleet, "meter-1", key=key, label="line"))
        await service.decide(numbers[-1], approve=True, by="boss")
        await enrol(fleet, "meter-1", key=key, label="line")
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    signings = [json.loads(each.details) for each in entries if each.action == Action.SIGNING_CERTIFICATE]
    assert [each["paid_with"] for each in signings] == [f"approval {number}" for number in numbers]


async def test_an_approval_of_a_newcomer_is_none_of_another_key_for_who_came_in_since(fleet: Fleet) -> None:
    await group(fleet, "approval", "token", new_key=NewKey.APPROVE)
    service = ApprovalService(fleet.database, fleet.clock)
    key = generate_key()
    number = await pending(fleet, "meter-1", key=key, label="line")
    await service.decide(number, approve=True, by="boss")
    fleet.clock.advance(timedelta(seconds=1))
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    certificate = await enrol(fleet, "meter-1", token=token)
    number = await pending(fleet, "meter-1", key=key, label="line")
    assert await is_good(fleet, certificate)
    (waiting,), _ = await service.page(limit=9, after=0, group="line", state=ApprovalState.PENDING)
    assert waiting.request.evidence == "nothing; the name is enrolled already"
    await service.decide(number, approve=True, by="boss")
    await enrol(fleet, "meter-1", key=key, label="line")
    assert not await is_good(fleet, certificate)


async def test_a_request_that_waited_while_its_name_came_in_is_not_approved_as_it_was_shown(fleet: Fleet) -> None:
    await group(fleet, "approval", "token", new_key=NewKey.APPROVE)
    service = ApprovalService(fleet.database, fleet.clock)
    key = generate_key()
    shown = await pending(fleet, "meter-1", key=key, label="line")
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    certificate = await enrol(fleet, "meter-1", token=token)
    # Two operators at once, who have both seen a request for a new name.
    outcomes = await asyncio.gather(
        *(service.decide(shown, approve=True, by=by) for by in ("anna", "bert")), return_exceptions=True
    )
    codes = {each.code for each in outcomes if isinstance(each, Refused)}
    assert codes == {Code.APPROVAL_OUTDATED, Code.APPROVAL_UNKNOWN}
    (waiting,), _ = await service.page(limit=9, after=0, group="line", state=None)
    assert waiting.request.evidence == "nothing; the name is enrolled already"
    assert waiting.state is ApprovalState.PENDING
    assert await pending(fleet, "meter-1", key=key, label="line") == waiting.id
    assert await is_good(fleet, certificate)
    await service.decide(waiting.id, approve=True, by="anna")
    await enrol(fleet, "meter-1", key=key, label="line")
    assert not await is_good(fleet, certificate), "that was decided"


async def test_a_request_that_comes_again_is_listed_as_it_is_now(fleet: Fleet) -> None:
    await group(fleet, "approval", "token", new_key=NewKey.APPROVE)
    service = ApprovalService(fleet.database, fleet.clock)
    key = generate_key()
    number = await pending(fleet, "meter-1", key=key, label="line")
    await enrol(fleet, "meter-1", token=TokenCredential("meter-1", await fleet.token("meter-1", "line")))
    again = await pending(fleet, "meter-1", key=key, label="line")
    assert again == await pending(fleet, "meter-1", key=key, label="line") != number
    with pytest.raises(Refused, match="APPROVAL_UNKNOWN"):
        await service.decide(number, approve=True, by="boss")
    (waiting,), _ = await service.page(limit=9, after=0, group="line", state=None)
    assert waiting.request.evidence == "nothing; the name is enrolled already"
    await service.decide(again, approve=False, by="boss")
    assert await refusal(fleet, "meter-1", key=key, label="line") is Code.APPROVAL_DENIED


async def test_who_asks_again_when_his_approval_is_used_up_waits_again(fleet: Fleet) -> None:
    """Though it is the same request, with the same key, shown as it was before."""
    await group(fleet, "approval", "token", new_key=NewKey.APPROVE)
    service = ApprovalService(fleet.database, fleet.clock)
    await enrol(fleet, "meter-1", token=TokenCredential("meter-1", await fleet.token("meter-1", "line")))
    key = generate_key()
    number = await pending(fleet, "meter-1", key=key, label="line")
    await service.decide(number, approve=True, by="boss")
    await enrol(fleet, "meter-1", key=key, label="line")
    fleet.clock.advance(HOUR)
    again = await pending(fleet, "meter-1", key=key, label="line")
    (waiting,), _ = await service.page(limit=9, after=0, group="line", state=ApprovalState.PENDING)
    assert waiting.id == again != number


async def test_an_approval_that_nobody_uses_ends_as_the_longest_token_does(fleet: Fleet) -> None:
    await group(fleet, "approval")
    service = ApprovalService(fleet.database, fleet.clock)
    keys = [generate_key(), generate_key()]
    for place, key in enumerate(keys):
        number = await pending(fleet, f"meter-{place}", key=key, label="line")
        fleet.clock.advance(HOUR)
        await service.decide(number, approve=True, by="boss")
    fleet.clock.advance(MAXIMUM_TTL - timedelta(seconds=1))
    await enrol(fleet, "meter-1", key=keys[1], label="line")

    async def shown(state: ApprovalState | None) -> list[tuple[str, ApprovalState]]:
        found, _ = await service.page(limit=9, after=0, group="line", state=state)
        return [(each.request.name, each.state) for each in found]

    over, used = ("meter-0", ApprovalState.LAPSED), ("meter-1", ApprovalState.USED)
    assert await shown(None) == [over, used], "it says approved for nobody"
    assert (await shown(ApprovalState.LAPSED), await shown(ApprovalState.APPROVED)) == ([over], [])
    moment = timedelta(seconds=1)
    fleet.clock.advance(-HOUR)  # One second before it lapses.
    assert await shown(ApprovalState.APPROVED) == [("meter-0", ApprovalState.APPROVED)]
    fleet.clock.advance(moment)
    assert (await shown(ApprovalState.LAPSED), await shown(ApprovalState.APPROVED)) == ([over], [])
    assert await pending(fleet, "meter-0", key=keys[0], label="line") > number, "as the list says"
    fleet.clock.advance(HOUR - moment)
    (waiting,), _ = await service.page(limit=9, after=0, group="line", state=ApprovalState.PENDING)
    await service.decide(waiting.id, approve=True, by="boss")
    await enrol(fleet, "meter-0", key=keys[0], label="line")


async def test_what_is_worth_one_certificate_does_not_fill_the_queue_and_is_told_from_others(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provisioning.enrolment.ways.approval.MOST_OF_ONE", 2)
    await group(fleet, "token+approval")
    issued = await fleet.token_service.create(TokenOrder(group="line", count=2), by="admin")
    first, second = (TokenCredential("x", each.token) for each in issued)
    keys = [generate_key() for _ in range(2)]
    numbers = [await pending(fleet, f"m-{place}", key=key, token=first) for place, key in enumerate(keys)]
    assert await refusal(fleet, "m-2", key=keys[0], token=first) is Code.APPROVALS_FULL
    assert await pending(fleet, "m-1", key=keys[1], token=first) == numbers[1], "which waits already"
    await pending(fleet, "m-2", key=keys[0], token=second)
    service = ApprovalService(fleet.database, fleet.clock)
    found, _ = await service.page(limit=9, after=0, group="line", state=None)
    shown = [f"token {each.number}" for each in issued]
    assert [each.request.evidence for each in found] == [shown[0], shown[0], shown[1]], "the operator sees whose it is"
    await service.decide(numbers[0], approve=True, by="boss")
    await pending(fleet, "m-3", key=keys[1], token=first)
    await enrol(fleet, "m-0", key=keys[0], token=first)
