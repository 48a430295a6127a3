"""Many tokens that are voided together: all, or none if one is unknown; what was spent meanwhile holds nothing up."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.tokens import IssuedToken, TokenOrder
from provisioning.errors import Code, Refused, RefusedTogether
from provisioning.pki.role import Role
from provisioning.store import audit
from provisioning.store.audit import Action
from provisioning.store.token_inventory import KnownToken, TokenState
from tests.support.fleet import Fleet
from tests.support.requests import csr_der


def anybody(_token: KnownToken) -> None:
    """He may."""


async def made(fleet: Fleet, *devices: str) -> list[IssuedToken]:
    return await fleet.token_service.create(TokenOrder(devices, "north"), by="admin")


async def voided(fleet: Fleet) -> list[tuple[str, str, int]]:
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    found = [each for each in entries if each.action == Action.TOKEN_VOIDED]
    return [(each.actor, each.subject, json.loads(each.details)["token"]) for each in found]


async def test_many_are_voided_in_one_step_with_an_entry_for_each(fleet: Fleet) -> None:
    tokens = await made(fleet, "meter-1", "meter-2", "meter-3")
    (anybodys,) = await fleet.token_service.create(TokenOrder(group="north"), by="admin")
    first, second, third = (each.number for each in tokens)
    await fleet.enrolment.enrol(csr_der(names=["meter-2"]), TokenCredential("meter-2", tokens[1].token))
    numbers = [third, second, first, anybodys.number, third]
    told, changed = await fleet.token_service.void_batch(numbers, anybody, by="anna")
    assert changed
    assert [(each.id, each.state) for each in told] == [
        (third, TokenState.VOID),
        (second, TokenState.USED),
        (first, TokenState.VOID),
        (anybodys.number, TokenState.VOID),
    ]
    assert told[1].serial is not None
    assert {each.voided_at for each in told} == {None, fleet.clock()}
    assert await voided(fleet) == [
        ("anna", "meter-3", third),
        ("anna", "meter-1", first),
        ("anna", f"token {anybodys.number}", anybodys.number),
    ]
    with pytest.raises(Refused, match="TOKEN_VOID"):
        await fleet.enrolment.enrol(csr_der(names=["meter-1"]), TokenCredential("meter-1", tokens[0].token))
    assert await fleet.token_service.void_batch(numbers, anybody, by="bert") == (told, False)
    assert len(await voided(fleet)) == 3


async def test_one_is_voided_once_and_who_asks_again_is_told_the_same(fleet: Fleet) -> None:
    (token,) = await made(fleet, "meter-1")
    told = await fleet.token_service.void(token.number, anybody, by="anna")
    assert (told.state, told.voided_at) == (TokenState.VOID, fleet.clock())
    fleet.clock.advance(timedelta(seconds=5))
    assert await fleet.token_service.void(token.number, anybody, by="bert") == told
    assert await voided(fleet) == [("anna", "meter-1", token.number)]


async def test_what_is_unknown_or_another_s_to_void_is_named_and_none_is_void(fleet: Fleet) -> None:
    (token,) = await made(fleet, "meter-1")
    (broker,) = await fleet.token_service.create(TokenOrder(["broker-1"], None, Role.BROKER), by="admin")

    def devices_only(known: KnownToken) -> None:
        if known.role is not Role.DEVICE:
            raise Refused(Code.OPERATOR_ROLE, "an admin can")

    numbers = [9999, broker.number, token.number, 8888]
    with pytest.raises(RefusedTogether) as caught:
        await fleet.token_service.void_batch(numbers, devices_only, by="anna")
    assert [(each.kind, each.name, each.code) for each in caught.value.items] == [
        ("token", 9999, Code.TOKEN_NUMBER_UNKNOWN),
        ("token", broker.number, Code.OPERATOR_ROLE),
        ("token", 8888, Code.TOKEN_NUMBER_UNKNOWN),
    ]
    assert caught.value.detail == (
        "there is no token, or it was removed after its end: 9999, 8888; an admin can; nothing of this request was "
        "voided"
    )
    assert await voided(fleet) == []
    await fleet.enrolment.enrol(csr_der(names=["meter-1"]), TokenCredential("meter-1", token.token))
