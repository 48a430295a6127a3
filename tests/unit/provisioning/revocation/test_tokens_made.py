"""What an operator whose key is compromised has made is void by one row, however many tokens that are."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from sqlalchemy import func, select

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.token_retention import TokenRetention
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Refused
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.store import audit, token_inventory, tokens
from provisioning.store.tables import tokens as token_rows
from provisioning.store.token_inventory import TokenFilter, TokenState
from tests.support.fleet import Fleet
from tests.support.operators import operator
from tests.support.requests import csr_der

COMPROMISED = RevocationReason.KEY_COMPROMISE
DAY = timedelta(days=1)


async def made(fleet: Fleet, by: str, *names: str) -> list[TokenCredential]:
    found = await fleet.token_service.create(TokenOrder(list(names), "north", Role.DEVICE), by=by)
    return [TokenCredential(name, each.token) for name, each in zip(names, found, strict=True)]


async def boss_is_compromised(fleet: Fleet) -> None:
    token = TokenCredential("boss", await fleet.token("boss", None, Role.OPERATOR))
    certificate = await fleet.enrolment.enrol(csr_der(names=["boss"]), token)
    await fleet.revocation.revoke_serial(f"{certificate.serial_number:x}", COMPROMISED, by="anna")


async def states(fleet: Fleet) -> dict[str | None, TokenState]:
    found, _ = await fleet.database.read(
        lambda connection: token_inventory.page(connection, TokenFilter(), limit=99, after=0, now=fleet.clock())
    )
    return {each.device: each.state for each in found}


async def test_they_are_void_and_none_is_written(fleet: Fleet) -> None:
    spent, kept, _ = await made(fleet, "boss", "meter-1", "meter-2", "meter-3")
    (other,) = await made(fleet, "anna", "meter-4")
    await fleet.enrolment.enrol(csr_der(names=["meter-1"]), spent)
    await boss_is_compromised(fleet)
    with pytest.raises(Refused, match="TOKEN_VOID"):
        await fleet.enrolment.enrol(csr_der(names=["meter-2"]), kept)
    assert await states(fleet) == {
        "meter-1": TokenState.USED, "meter-2": TokenState.VOID, "meter-3": TokenState.VOID,
        "meter-4": TokenState.OPEN, "boss": TokenState.USED,
    }  # fmt: skip
    void = TokenFilter(TokenState.VOID)
    listed, _ = await fleet.database.read(
        lambda connection: token_inventory.page(connection, void, limit=99, after=0, now=fleet.clock())
    )
    assert [(each.device, each.voided_at) for each in listed] == [
        (each, fleet.clock()) for each in ("meter-2", "meter-3")
    ]
    assert await fleet.database.read(lambda connection: tokens.count_open(connection, fleet.clock())) == 1
    written = select(func.count()).where(token_rows.c.voided_at.is_not(None))
    assert await fleet.database.read(lambda connection: connection.execute(written).scalar_one()) == 0
    await fleet.enrolment.enrol(csr_der(names=["meter-4"]), other)

    # What he makes with his next certificate is good, and void when that is compromised, too.
    (again,) = await made(fleet, "boss", "meter-5")
    assert (await states(fleet))["meter-5"] is TokenState.OPEN
    fleet.clock.advance(DAY / 48)
    await boss_is_compromised(fleet)
    with pytest.raises(Refused, match="TOKEN_VOID"):
        await fleet.enrolment.enrol(csr_der(names=["meter-5"]), again)
    first = await fleet.database.read(lambda connection: token_inventory.find_all(connection, [2], fleet.clock()))
    assert first[2].voided_at == fleet.clock() - DAY / 48, "since the first time"


async def test_of_every_operator_whose_key_is_compromised_and_for_no_other_reason(fleet: Fleet) -> None:
    await operator(fleet, "boss")
    ended = ["anna", "bert"]
    for number, name in enumerate(ended):
        await operator(fleet, name)
        await made(fleet, name, f"meter-{number}")
    for reason in (RevocationReason.SUPERSEDED, RevocationReason.UNSPECIFIED):
        certificate = await operator(fleet, "carl")
        await made(fleet, "carl", f"meter-{reason}")
        await fleet.revocation.revoke_serial(f"{certificate.serial_number:x}", reason, by="boss")
        assert (await states(fleet))[f"meter-{reason}"] is TokenState.OPEN
    assert {(await states(fleet))[f"meter-{number}"] for number in range(2)} == {TokenState.OPEN}
    await fleet.revocation.revoke_batch(ended, [], COMPROMISED, by="boss")
    assert {(await states(fleet))[f"meter-{number}"] for number in range(2)} == {TokenState.VOID}
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    voided = [json.loads(each.details).get("tokens_voided") for each in entries if each.action == "revoked"][-2:]
    assert voided == [1, 1]


async def test_a_number_that_is_given_again_is_no_void_token_s(fleet: Fleet) -> None:
    """SQLite gives the last one again when its row is removed."""
    await made(fleet, "boss", "meter-1", "meter-2")
    await boss_is_compromised(fleet)
    await made(fleet, "boss", "meter-3")
    await boss_is_compromised(fleet)
    fleet.clock.advance(400 * DAY)
    retention = TokenRetention(fleet.database, fleet.clock, DAY, "provisioning")
    assert await retention.remove() == 3, "the last ones of each time stay"
    (good,) = await made(fleet, "boss", "meter-4")
    await fleet.enrolment.enrol(csr_der(names=["meter-4"]), good)
