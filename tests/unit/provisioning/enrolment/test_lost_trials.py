"""What a lost trial leaves: a name that is free again, and a key that is nobody's once another has got the name."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509

from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.claims import ClaimOrder, ClaimService
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Refused
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.store.groups import NewKey
from tests.support.fleet import Fleet, successor_csr
from tests.support.ways import HOUR, claim, enrol, group, is_good, nothing, pending, refusal

NAME = "meter-1"
DAY = timedelta(days=1)


async def any_name(fleet: Fleet) -> TokenCredential:
    (token,) = await fleet.token_service.create(TokenOrder(group="line"), by="boss")
    return TokenCredential(NAME, token.token)


async def comes_in(fleet: Fleet, by: str, key: PrivateKey, shared: x509.Certificate) -> x509.Certificate:
    if by == "token":
        return await enrol(fleet, NAME, key=key, token=TokenCredential(NAME, await fleet.token(NAME, "line")))
    trial = await enrol(fleet, NAME, key=key, certificate=shared)
    return await fleet.reenrol(trial, successor_csr(trial, key))


@pytest.mark.parametrize("new_key", NewKey)
@pytest.mark.parametrize("by", ["claim", "token"])
async def test_its_key_is_not_that_of_the_device_that_has_got_the_name(fleet: Fleet, by: str, new_key: NewKey) -> None:
    """Or whoever has copied a claim tries every name for an hour, and is each of these devices later."""
    await group(fleet, "claim", "token", new_key=new_key)
    shared, thiefs, key = await claim(fleet, devices=9), generate_key(), generate_key()
    await enrol(fleet, NAME, key=thiefs, certificate=shared)
    fleet.clock.advance(2 * HOUR)
    mine = await comes_in(fleet, by, key, shared)
    fleet.clock.advance(2 * HOUR)
    for shown in ({"certificate": shared}, {"token": await any_name(fleet)}):
        if new_key is NewKey.APPROVE:
            await pending(fleet, NAME, key=thiefs, **shown)
        else:
            assert await refusal(fleet, NAME, key=thiefs, **shown) is Code.NAME_TAKEN
    assert await is_good(fleet, mine)
    again = await enrol(fleet, NAME, key=key, token=await any_name(fleet))
    assert await is_good(fleet, again), "its own key still is"


async def test_nor_while_that_one_is_on_trial(fleet: Fleet) -> None:
    await group(fleet, "claim", "token")
    shared, thiefs, key = await claim(fleet, devices=9), generate_key(), generate_key()
    await enrol(fleet, NAME, key=thiefs, certificate=shared)
    fleet.clock.advance(2 * HOUR)
    trial = await enrol(fleet, NAME, key=key, certificate=shared)
    assert await refusal(fleet, NAME, key=thiefs, certificate=shared) is Code.NAME_TAKEN
    assert await refusal(fleet, NAME, key=thiefs, token=await any_name(fleet)) is Code.NAME_TAKEN
    await fleet.reenrol(trial, successor_csr(trial, key))


async def test_nor_that_of_a_trial_which_lasts_when_a_token_has_bought_the_name(fleet: Fleet) -> None:
    await group(fleet, "claim", "token")
    service = ClaimService(fleet.database, fleet.clock, nothing)
    order = ClaimOrder("long", "line", 9, timedelta(days=30), trial=7 * DAY)
    shared = x509.load_der_x509_certificate((await service.create(order, by="boss")).claim.der)
    thiefs, key = generate_key(), generate_key()
    trial = await enrol(fleet, NAME, key=thiefs, certificate=shared)
    mine = await comes_in(fleet, "token", key, shared)
    fleet.clock.advance(DAY)  # The same request is not answered again any more, and the trial lasts.
    assert await refusal(fleet, NAME, key=thiefs, certificate=shared) is Code.NAME_TAKEN
    with pytest.raises(Refused, match="NAME_TAKEN"):
        await fleet.reenrol(trial, successor_csr(trial, thiefs))
    assert await is_good(fleet, mine)


async def test_nor_does_an_approval_that_has_bought_a_trial_replace_who_has_got_the_name(fleet: Fleet) -> None:
    await group(fleet, "claim+approval", "token", new_key=NewKey.APPROVE)
    service = ClaimService(fleet.database, fleet.clock, nothing)
    order = ClaimOrder("short", "line", 9, timedelta(days=30), trial=HOUR / 6)
    shared = x509.load_der_x509_certificate((await service.create(order, by="boss")).claim.der)
    approvals, thiefs, key = ApprovalService(fleet.database, fleet.clock), generate_key(), generate_key()
    await approvals.decide(await pending(fleet, NAME, key=thiefs, certificate=shared), approve=True, by="boss")
    await enrol(fleet, NAME, key=thiefs, certificate=shared)
    fleet.clock.advance(HOUR / 5)
    mine = await comes_in(fleet, "token", key, shared)
    await pending(fleet, NAME, key=thiefs, certificate=shared)
    assert await is_good(fleet, mine)


async def test_what_an_approved_trial_replaces_ends_as_it_begins_and_the_device_may_lose_it(fleet: Fleet) -> None:
    """Or the key that is to be replaced renews meanwhile, and no trial of another key is ever activated."""
    await group(fleet, "claim", "token", new_key=NewKey.APPROVE)
    shared, old, new = await claim(fleet, devices=9), generate_key(), generate_key()
    mine = await comes_in(fleet, "token", old, shared)
    approvals = ApprovalService(fleet.database, fleet.clock)
    await approvals.decide(await pending(fleet, NAME, key=new, certificate=shared), approve=True, by="boss")
    await enrol(fleet, NAME, key=new, certificate=shared)
    with pytest.raises(Refused, match="CERTIFICATE_REVOKED"):
        await fleet.reenrol(mine, successor_csr(mine, old))
    fleet.clock.advance(2 * HOUR)
    again = await enrol(fleet, NAME, key=new, certificate=shared)
    assert await is_good(fleet, await fleet.reenrol(again, successor_csr(again, new))), "the approval is not lost"


async def test_it_is_tried_again_by_whoever_lost_it_while_nobody_else_has_the_name(fleet: Fleet) -> None:
    await group(fleet, "claim")
    shared, key = await claim(fleet, devices=1), generate_key()
    for _ in range(2):
        trial = await enrol(fleet, NAME, key=key, certificate=shared)
        fleet.clock.advance(2 * HOUR)
    trial = await enrol(fleet, NAME, key=key, certificate=shared)
    full = await fleet.reenrol(trial, successor_csr(trial, key))
    fleet.clock.advance(2 * HOUR)
    again = await enrol(fleet, NAME, key=key, certificate=shared)
    assert await is_good(fleet, full)
    assert await is_good(fleet, await fleet.reenrol(again, successor_csr(again))), "it is the device's"


async def test_nor_is_the_key_of_a_trial_that_has_activated_another_once_the_trial_is_over(fleet: Fleet) -> None:
    """A key from a factory, say: the device has changed it, and the factory still has it, and the claim."""
    await group(fleet, "claim", "token")
    shared, factorys, own = await claim(fleet, devices=9), generate_key(), generate_key()
    trial = await enrol(fleet, NAME, key=factorys, certificate=shared)
    await fleet.reenrol(trial, successor_csr(trial, own))
    assert await enrol(fleet, NAME, key=factorys, certificate=shared) == trial, "its answer may have been lost"
    fleet.clock.advance(2 * HOUR)
    assert await refusal(fleet, NAME, key=factorys, certificate=shared) is Code.NAME_TAKEN
    assert await refusal(fleet, NAME, key=factorys, token=await any_name(fleet)) is Code.NAME_TAKEN
    again = await enrol(fleet, NAME, key=own, token=await any_name(fleet))
    assert await is_good(fleet, again), "the key that it has"


async def test_nor_is_the_key_that_a_renewal_has_replaced_once_all_that_was_for_it_has_expired(fleet: Fleet) -> None:
    """A key is changed so that the old one is worth nothing in the end; shared evidence does not change that."""
    await group(fleet, "claim", "token")
    shared, old, new = await claim(fleet, devices=9), generate_key(), generate_key()
    first = await comes_in(fleet, "token", old, shared)
    fleet.clock.advance(20 * DAY)
    await fleet.reenrol(first, successor_csr(first, new))
    assert await is_good(fleet, await enrol(fleet, NAME, key=old, token=await any_name(fleet))), "its first one is good"
    fleet.clock.advance(HOUR)
    newest = await fleet.reenrol(first, successor_csr(first, new))
    fleet.clock.advance(31 * DAY)
    assert not await is_good(fleet, newest)
    order = ClaimOrder("later", "line", 9, timedelta(days=30))
    service = ClaimService(fleet.database, fleet.clock, nothing)
    later = x509.load_der_x509_certificate((await service.create(order, by="boss")).claim.der)
    assert await refusal(fleet, NAME, key=old, certificate=later) is Code.NAME_TAKEN
    assert await refusal(fleet, NAME, key=old, token=await any_name(fleet)) is Code.NAME_TAKEN
    trial = await enrol(fleet, NAME, key=new, certificate=later)
    assert await is_good(fleet, await fleet.reenrol(trial, successor_csr(trial, new))), "it still has that key"


async def test_a_lost_trial_of_another_key_has_not_replaced_the_one_that_a_device_has(fleet: Fleet) -> None:
    """The device may have tried what an operator has offered, and given up."""
    await group(fleet, "claim+token", "claim", "token")
    shared, key = await claim(fleet, devices=9), generate_key()
    first = await comes_in(fleet, "token", key, shared)
    token = TokenCredential(NAME, await fleet.token(NAME, "line"))
    await enrol(fleet, NAME, key=generate_key(), token=token, certificate=shared)
    assert await is_good(fleet, first)
    fleet.clock.advance(first.not_valid_after_utc - fleet.clock() - HOUR)
    order = ClaimOrder("later", "line", 9, timedelta(days=30))
    service = ClaimService(fleet.database, fleet.clock, nothing)
    later = x509.load_der_x509_certificate((await service.create(order, by="boss")).claim.der)
    fleet.clock.advance(2 * HOUR)
    trial = await enrol(fleet, NAME, key=key, certificate=later)
    assert await is_good(fleet, await fleet.reenrol(trial, successor_csr(trial, key)))
