"""What an operator whose key is compromised has made is void by one row, however many tokens that are."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
from cryptography import x509
from sqlalchemy import func, select

from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.token_retention import TokenRetention
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Pending, Refused
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.store import audit, token_inventory, tokens
from provisioning.store.groups import Group
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


async def test_what_is_made_after_void_tokens_were_removed_is_not_void(fleet: Fleet) -> None:
    """SQLite gives the last number again when its row is removed."""
    await made(fleet, "boss", "meter-1", "meter-2")
    await boss_is_compromised(fleet)
    await made(fleet, "boss", "meter-3")
    await boss_is_compromised(fleet)
    fleet.clock.advance(400 * DAY)
    retention = TokenRetention(fleet.database, fleet.clock, DAY, "provisioning")
    assert await retention.remove() == 4, "the last one stays"
    (good,) = await made(fleet, "boss", "meter-4")
    await fleet.enrolment.enrol(csr_der(names=["meter-4"]), good)


async def waiting(fleet: Fleet, name: str, key: PrivateKey) -> int:
    """Make a request wait for an operator, and return its number."""
    with pytest.raises(Pending):
        await fleet.enrolment.enrol(csr_der(key, names=[name]), None, "line")
    found, _ = await ApprovalService(fleet.database, fleet.clock).page(limit=99, after=0, group="line", state=None)
    return max(each.id for each in found if each.request.name == name)


END = Callable[[Fleet, x509.Certificate], Awaitable[object]]
ENDS: dict[str, END] = {
    "one": lambda fleet, boss: fleet.revocation.revoke_serial(f"{boss.serial_number:x}", COMPROMISED, by="anna"),
    "device": lambda fleet, _: fleet.revocation.revoke_device("boss", COMPROMISED, by="anna"),
    "many": lambda fleet, _: fleet.revocation.revoke_batch(["boss"], [], COMPROMISED, by="anna"),
}


@pytest.mark.parametrize("end", ENDS)
async def test_what_he_has_approved_and_nobody_has_had_is_to_be_decided_again(fleet: Fleet, end: str) -> None:
    """Else a thief of his key keeps a request back that he has approved, until the key is of no use to him any more."""
    await operator(fleet, "anna")
    boss = await operator(fleet, "boss")
    await fleet.groups.create(Group("line", ways=parse_ways(["approval"])), by="admin")
    service = ApprovalService(fleet.database, fleet.clock)
    keys = {name: generate_key() for name in ("had", "held", "denied", "other")}
    numbers = {name: await waiting(fleet, name, key) for name, key in keys.items()}
    for name, by in (("had", "boss"), ("held", "boss"), ("denied", "boss"), ("other", "anna")):
        await service.decide(numbers[name], approve=name != "denied", by=by)
    had = await fleet.enrolment.enrol(csr_der(keys["had"], names=["had"]), None, "line")
    await ENDS[end](fleet, boss)
    assert await waiting(fleet, "held", keys["held"]) == numbers["held"], "it waits as it did before"
    found, _ = await service.page(limit=9, after=0, group="line", state=None)
    assert {each.request.name: (each.state.value, each.decided_by) for each in found} == {
        "had": ("used", "boss"),
        "held": ("pending", None),
        "denied": ("denied", "boss"),
        "other": ("approved", "anna"),
    }
    again = await fleet.enrolment.enrol(csr_der(keys["had"], names=["had"]), None, "line")
    assert again == had
    await fleet.enrolment.enrol(csr_der(keys["other"], names=["other"]), None, "line")
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    (details,) = [json.loads(each.details) for each in entries if each.action == "revoked" and each.subject == "boss"]
    assert details["approvals_undone"] == 1
    await service.decide(numbers["held"], approve=True, by="anna")
    await fleet.enrolment.enrol(csr_der(keys["held"], names=["held"]), None, "line")


async def test_what_who_is_revoked_for_another_reason_has_approved_stays_approved(fleet: Fleet) -> None:
    await operator(fleet, "anna")
    await operator(fleet, "boss")
    await fleet.groups.create(Group("line", ways=parse_ways(["approval"])), by="admin")
    key = generate_key()
    number = await waiting(fleet, "meter-1", key)
    await ApprovalService(fleet.database, fleet.clock).decide(number, approve=True, by="boss")
    await fleet.revocation.revoke_device("boss", RevocationReason.SUPERSEDED, by="anna")
    await fleet.enrolment.enrol(csr_der(key, names=["meter-1"]), None, "line")
