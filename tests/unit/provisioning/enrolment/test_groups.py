"""Groups: which ways lead in, and what holds for a device that comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import select

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.tokens import TokenOrder, new_token
from provisioning.errors import Code, Refused
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.store import audit_findings, tables
from provisioning.store.groups import Group, NewKey, WayName
from tests.support.fleet import Fleet, successor_csr
from tests.support.requests import csr_der

HOUR = timedelta(hours=1)


async def group(fleet: Fleet, name: str = "north", **rules: Any) -> None:
    await fleet.groups.create(Group(name, **rules), by="admin")


async def group_token(fleet: Fleet, group_name: str = "north") -> str:
    (issued,) = await fleet.token_service.create(TokenOrder(group=group_name), by="admin")
    return issued.token


async def refusal(fleet: Fleet, csr: bytes, token: str | None, **presented: Any) -> Code:
    credential = None if token is None else TokenCredential("meter-17", token)
    with pytest.raises(Refused) as caught:
        await fleet.enrolment.enrol(csr, credential, **presented)
    return caught.value.code


async def test_a_group_that_nobody_made_lets_devices_in_by_token(fleet: Fleet) -> None:
    assert Group("north").ways == ((WayName.TOKEN,),)
    certificate = await fleet.enrol()
    assert certificate.not_valid_after_utc == fleet.clock() + timedelta(days=30)


async def test_a_closed_group_lets_nobody_in_and_keeps_who_is_in(fleet: Fleet) -> None:
    inside = await fleet.enrol("meter-1")
    token = await fleet.token()
    await group(fleet, ways=())
    assert await refusal(fleet, csr_der(), token) is Code.WAY_REFUSED
    assert await refusal(fleet, csr_der(), None, label="north") is Code.WAY_REFUSED
    with pytest.raises(Refused, match="WAY_REFUSED: a token could not be used"):
        await fleet.token()
    await fleet.reenrol(inside, successor_csr(inside))
    await group(fleet, "south")
    before = await fleet.groups.find("south")
    await fleet.groups.change("north", {"ways": parse_ways(["token"])}, by="admin")
    assert await fleet.groups.find("south") == before
    await fleet.enrolment.enrol(csr_der(), TokenCredential("meter-17", token))


async def test_nobody_gets_in_with_nothing(fleet: Fleet) -> None:
    assert await refusal(fleet, csr_der(), None) is Code.TOKEN_MISSING
    assert await refusal(fleet, csr_der(), None, label="north") is Code.TOKEN_MISSING


async def test_rules_are_for_devices_only(fleet: Fleet) -> None:
    await group(fleet, ways=())
    token = await fleet.token("billing", role=Role.SERVICE)
    await fleet.enrolment.enrol(csr_der(names=["billing"]), TokenCredential("billing", token))


async def test_the_shortest_of_profile_group_and_token_is_the_life(fleet: Fleet) -> None:
    await group(fleet, lifetime=timedelta(days=7))
    first = await fleet.enrol()
    assert first.not_valid_after_utc == fleet.clock() + timedelta(days=7)
    successor = await fleet.reenrol(first, successor_csr(first))
    assert successor.not_valid_after_utc == fleet.clock() + timedelta(days=7)
    order = TokenOrder(["meter-2"], "north", lifetime=timedelta(days=1))
    (issued,) = await fleet.token_service.create(order, by="admin")
    short = await fleet.enrolment.enrol(csr_der(names=["meter-2"]), TokenCredential("meter-2", issued.token))
    assert short.not_valid_after_utc == fleet.clock() + timedelta(days=1)


async def test_a_group_is_full_when_it_is_full(fleet: Fleet) -> None:
    await group(fleet, maximum_devices=3)
    tokens = [await fleet.token(f"meter-{number}") for number in range(8)]

    async def attempt(number: int) -> x509.Certificate | Code:
        name = f"meter-{number}"
        try:
            return await fleet.enrolment.enrol(csr_der(names=[name]), TokenCredential(name, tokens[number]))
        except Refused as refused:
            return refused.code

    outcomes = await asyncio.gather(*(attempt(number) for number in range(8)))
    assert outcomes.count(Code.GROUP_FULL) == 5
    # Who is in may come back with a token, and a place becomes free for ever when a device goes for ever.
    inside = [number for number, each in enumerate(outcomes) if not isinstance(each, Code)]
    outside = next(number for number, each in enumerate(outcomes) if isinstance(each, Code))
    await fleet.enrol(f"meter-{inside[0]}")
    await fleet.revocation.decommission(f"meter-{inside[1]}", by="admin")
    assert isinstance(await attempt(outside), x509.Certificate)


async def test_a_group_gets_so_many_certificates_a_minute_and_others_theirs(fleet: Fleet) -> None:
    await group(fleet, certificates_per_minute=3, same_key_window=HOUR)
    key = generate_key()
    first = await fleet.enrol("meter-1", csr_der(key, names=["meter-1"]))
    await fleet.enrol("meter-2")
    token = await fleet.token("meter-3")
    for wrong in (csr_der(names=["other"]), csr_der(names=["meter-9"])):  # What comes to nothing counts for nothing.
        with pytest.raises(Refused, match="TOKEN_DEVICE"):
            await fleet.enrolment.enrol(wrong, TokenCredential("meter-3", token))
    successor = await fleet.reenrol(first, successor_csr(first))
    with pytest.raises(
        Refused, match="RATE_LIMITED: group north has reached its limit of 3 certificates a minute"
    ) as caught:
        await fleet.enrolment.enrol(csr_der(names=["meter-3"]), TokenCredential("meter-3", token))
    assert caught.value.retry_after == 20
    with pytest.raises(Refused, match="RATE_LIMITED"):
        await fleet.reenrol(successor, successor_csr(successor))
    (other,) = await fleet.token_service.create(TokenOrder(["meter-4"], "south"), by="admin")
    await fleet.enrolment.enrol(csr_der(names=["meter-4"]), TokenCredential("meter-4", other.token))
    fleet.clock.advance(timedelta(seconds=19.8))
    with pytest.raises(Refused, match="wait 1 s"):
        await fleet.enrolment.enrol(csr_der(names=["meter-3"]), TokenCredential("meter-3", token))
    fleet.clock.advance(timedelta(seconds=0.2))
    await fleet.enrolment.enrol(csr_der(names=["meter-3"]), TokenCredential("meter-3", token))


async def test_a_group_that_had_its_fill_is_served_after_the_clock_was_set_back(fleet: Fleet) -> None:
    await group(fleet, certificates_per_minute=2)
    fleet.clock.advance(2 * HOUR)
    for number in range(2):
        await fleet.enrol(f"meter-{number}")
    fleet.clock.advance(timedelta(seconds=-30))  # As the clocks of two machines may differ.
    with pytest.raises(Refused, match="RATE_LIMITED"):
        await fleet.enrol("meter-2")
    fleet.clock.advance(-HOUR)
    for number in (3, 4):
        await fleet.enrol(f"meter-{number}")
    with pytest.raises(Refused, match="wait 30 s"):
        await fleet.enrol("meter-5")


async def test_a_lost_answer_is_given_again_to_the_same_key_for_a_while(fleet: Fleet) -> None:
    await group(fleet, same_key_window=HOUR)
    key, token = generate_key(), await fleet.token()
    credential = TokenCredential("meter-17", token)
    first = await fleet.enrolment.enrol(csr_der(key), credential)
    again = await asyncio.gather(*(fleet.enrolment.enrol(csr_der(key), credential) for _ in range(5)))
    assert set(again) == {first}
    signed = await fleet.database.read(lambda connection: connection.execute(select(tables.certificates.c.id)).all())
    assert len(signed) == 1
    # Another key, another name, too late, revoked: no.
    assert await refusal(fleet, csr_der(), token) is Code.TOKEN_USED
    assert await refusal(fleet, csr_der(key, names=["meter-18"]), token) is Code.TOKEN_USED
    fleet.clock.advance(HOUR)
    assert await refusal(fleet, csr_der(key), token) is Code.TOKEN_USED
    fleet.clock.advance(-HOUR)
    await fleet.revocation.revoke_serial(f"{first.serial_number:x}", RevocationReason.UNSPECIFIED, by="admin")
    assert await refusal(fleet, csr_der(key), token) is Code.TOKEN_USED


async def test_a_token_answers_again_with_what_it_bought_and_with_nothing_newer(fleet: Fleet) -> None:
    await group(fleet, same_key_window=HOUR)
    key, token = generate_key(), await fleet.token()
    first = await fleet.enrolment.enrol(csr_der(key), TokenCredential("meter-17", token))
    fleet.clock.advance(timedelta(seconds=1))
    await fleet.reenrol(first, successor_csr(first, key))
    assert await refusal(fleet, csr_der(key), token) is Code.TOKEN_USED


async def test_what_has_ended_is_not_given_again(fleet: Fleet) -> None:
    await group(fleet, lifetime=HOUR, same_key_window=3 * HOUR)
    key = generate_key()
    first = await fleet.enrolment.enrol(csr_der(key), TokenCredential("x", await group_token(fleet)))
    fleet.clock.advance(2 * HOUR)
    second = await fleet.enrolment.enrol(csr_der(key), TokenCredential("x", await group_token(fleet)))
    assert second.not_valid_after_utc == first.not_valid_after_utc + 2 * HOUR


async def test_what_has_not_begun_is_not_given_again(fleet: Fleet) -> None:
    """It was issued by a clock that has been set back since: the device could use it for nothing."""
    await group(fleet, same_key_window=HOUR)
    fleet.clock.advance(2 * HOUR)
    key, once = generate_key(), await fleet.token("x")
    ahead = await fleet.enrolment.enrol(csr_der(key, names=["x"]), TokenCredential("x", once))
    fleet.clock.advance(timedelta(seconds=-59))  # It is dated back so far.
    again = csr_der(key, names=["x"])
    assert await fleet.enrolment.enrol(again, TokenCredential("x", await group_token(fleet))) == ahead
    fleet.clock.advance(-HOUR)
    with pytest.raises(Refused, match="TOKEN_USED"):
        await fleet.enrolment.enrol(again, TokenCredential("x", once))
    now = await fleet.enrolment.enrol(again, TokenCredential("x", await group_token(fleet)))
    assert now.not_valid_before_utc < fleet.clock()
    await fleet.reenrol(now, successor_csr(now))


async def test_without_a_window_a_token_answers_once(fleet: Fleet) -> None:
    await group(fleet, same_key_window=timedelta())
    key, token = generate_key(), await fleet.token()
    await fleet.enrolment.enrol(csr_der(key), TokenCredential("meter-17", token))
    assert await refusal(fleet, csr_der(key), token) is Code.TOKEN_USED


@pytest.mark.parametrize("role", Role)
async def test_a_lost_answer_costs_nobody_the_token_unless_a_group_says_so(fleet: Fleet, role: Role) -> None:
    """No group is configured, and there is none for who is no device: an hour, for the same key and name."""
    key, token = generate_key(), await fleet.token(group="north" if role is Role.DEVICE else None, role=role)
    credential = TokenCredential("meter-17", token)
    first = await fleet.enrolment.enrol(csr_der(key), credential)
    fleet.clock.advance(HOUR - timedelta(seconds=1))
    again = await asyncio.gather(*(fleet.enrolment.enrol(csr_der(key), credential) for _ in range(3)))
    assert set(again) == {first}
    assert await refusal(fleet, csr_der(), token) is Code.TOKEN_USED, "whoever has copied the token"
    signed = await fleet.database.read(lambda connection: connection.execute(select(tables.certificates.c.id)).all())
    assert len(signed) == 1
    fleet.clock.advance(timedelta(seconds=1))
    assert await refusal(fleet, csr_der(key), token) is Code.TOKEN_USED


@pytest.mark.parametrize(
    "end",
    [
        lambda fleet, _: fleet.revocation.revoke_device("meter-17", RevocationReason.UNSPECIFIED, by="admin"),
        lambda fleet, serial: fleet.revocation.revoke_serial(serial, RevocationReason.UNSPECIFIED, by="admin"),
        lambda fleet, _: fleet.suspension.suspend_device("meter-17", by="admin"),
        lambda fleet, serial: fleet.suspension.suspend_serial(serial, by="admin"),
        lambda fleet, _: fleet.revocation.decommission("meter-17", by="admin"),
        lambda fleet, _: group(fleet, ways=()),
    ],
    ids=["revoked", "its certificate revoked", "suspended", "its certificate suspended", "decommissioned", "closed"],
)
async def test_what_has_ended_meanwhile_is_no_answer_to_the_repeated_request(
    fleet: Fleet, end: Callable[[Fleet, str], Awaitable[object]]
) -> None:
    key, token = generate_key(), await fleet.token()
    first = await fleet.enrolment.enrol(csr_der(key), TokenCredential("meter-17", token))
    await end(fleet, f"{first.serial_number:x}")
    assert await refusal(fleet, csr_der(key), token) is Code.TOKEN_USED


@pytest.mark.parametrize("role", Role)
async def test_a_token_for_new_ones_brings_back_by_his_key_nobody_but_a_device(fleet: Fleet, role: Role) -> None:
    """Their certificates have expired: a former admin would be one again, by a token that is for a new operator."""
    key, now = generate_key(), fleet.clock()
    first = await fleet.enrolment.enrol(csr_der(key), TokenCredential("meter-17", await fleet.token(role=role)))
    (unbound,) = await fleet.token_service.create(TokenOrder((), "north", role, timedelta(days=90)), by="admin")
    credential = TokenCredential("meter-17", unbound.token)
    assert await fleet.enrolment.enrol(csr_der(key), credential) == first, "what he has, and nothing is spent for it"
    fleet.clock.advance(first.not_valid_after_utc - now + timedelta(seconds=1))
    if role is Role.DEVICE:
        await fleet.enrolment.enrol(csr_der(key), credential)
    else:
        assert await refusal(fleet, csr_der(key), unbound.token) is Code.NAME_TAKEN


async def test_a_token_that_nobody_has_made_lets_nobody_in(fleet: Fleet) -> None:
    assert await refusal(fleet, csr_der(), new_token()) is Code.TOKEN_UNKNOWN


async def test_a_token_of_the_group_never_becomes_a_device_that_exists(fleet: Fleet) -> None:
    await group(fleet, new_key=NewKey.REPLACE, same_key_window=HOUR)
    await fleet.enrol()
    assert await refusal(fleet, csr_der(), await group_token(fleet)) is Code.NAME_TAKEN


async def test_replace_revokes_what_the_new_certificate_replaces_at_once(fleet: Fleet) -> None:
    await group(fleet, new_key=NewKey.REPLACE)
    old = await fleet.enrol()
    fleet.told.clear()
    new = await fleet.enrol()
    assert fleet.told == ["feed", "crl"]
    with pytest.raises(Refused, match=r"CERTIFICATE_REVOKED.*superseded"):
        await fleet.reenrol(old, successor_csr(old))
    await fleet.reenrol(new, successor_csr(new))
    await fleet.database.read(
        lambda connection: list(audit_findings.findings(connection)) == [] or pytest.fail("audit")
    )


async def test_a_token_of_a_device_that_exists_replaces_nothing_unless_its_group_says_so(fleet: Fleet) -> None:
    await group(fleet, new_key=NewKey.APPROVE)
    both = [await fleet.enrol(), await fleet.enrol()]
    for each in both:
        await fleet.reenrol(each, successor_csr(each))


async def test_the_same_key_of_a_device_in_a_group_gets_a_certificate_by_the_group_s_token(fleet: Fleet) -> None:
    await group(fleet, same_key_window=HOUR)
    key = generate_key()
    first = await fleet.enrolment.enrol(csr_der(key), TokenCredential("x", await group_token(fleet)))
    token = await group_token(fleet)
    assert await fleet.enrolment.enrol(csr_der(key), TokenCredential("x", token)) == first, "nothing is spent for it"
    fleet.clock.advance(HOUR)
    token = await group_token(fleet)
    second = await fleet.enrolment.enrol(csr_der(key), TokenCredential("x", token))
    assert second.serial_number != first.serial_number
    # A revocation for cause is not undone by asking again.
    await fleet.revocation.revoke_serial(f"{second.serial_number:x}", RevocationReason.UNSPECIFIED, by="admin")
    assert await refusal(fleet, csr_der(key), await group_token(fleet)) is Code.CERTIFICATE_REVOKED
