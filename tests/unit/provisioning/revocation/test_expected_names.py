"""Who revokes a name under which nobody has enrolled yet, ends what was promised to it: nobody enrols by it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest

from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.device_list import DeviceListService
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Pending, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.keys import generate_key, spki_fingerprint
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation.recording import RevocationOutcome
from provisioning.store import audit, device_inventory, devices, operators
from provisioning.store.audit import Action
from provisioning.store.device_inventory import Standing
from provisioning.store.devices import DeviceState
from tests.support.fleet import Fleet
from tests.support.operators import operator
from tests.support.searched import noted
from tests.support.ways import claim, enrol, group, refusal

KEY = generate_key()
UNSPECIFIED = RevocationReason.UNSPECIFIED


async def promised(fleet: Fleet, name: str, group_name: str = "north", role: Role = Role.DEVICE) -> TokenCredential:
    placed = group_name if role is Role.DEVICE else None
    (issued,) = await fleet.token_service.create(TokenOrder([name], placed, role), by="admin")
    return TokenCredential(name, issued.token)


async def revoke(fleet: Fleet, *names: str, batch: bool = False) -> RevocationOutcome:
    if batch:
        return await fleet.revocation.revoke_batch(names, [], UNSPECIFIED, by="admin")
    return await fleet.revocation.revoke_device(names[0], UNSPECIFIED, by="admin")


@pytest.mark.parametrize("batch", [False, True])
async def test_a_token_is_void_with_its_name_and_only_one_of_later_admits_it(fleet: Fleet, batch: bool) -> None:
    token, other = await promised(fleet, "meter-17"), await promised(fleet, "meter-18")
    with pytest.raises(Refused, match="DEVICE_UNKNOWN: no device is called 'meter-1x'"):
        await fleet.revocation.revoke_batch(["meter-18", "meter-1x"], [], UNSPECIFIED, by="admin")
    outcome = await revoke(fleet, "meter-17", batch=batch)
    assert (outcome.changed, outcome.revoked, outcome.names) == (True, [], ["meter-17"])
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    (entry,) = [each for each in entries if each.action == Action.REVOKED]
    assert (entry.subject, json.loads(entry.details)["tokens_voided"]) == ("meter-17", 1)
    shown = await fleet.database.read(lambda connection: device_inventory.find(connection, "meter-17", fleet.clock()))
    assert shown is not None
    assert (shown.device.state, shown.certificate) == (DeviceState.REVOKED, Standing.NONE)
    assert await refusal(fleet, "meter-17", token=token) is Code.TOKEN_VOID
    fleet.clock.advance(timedelta(minutes=1))
    again = await revoke(fleet, "meter-17", batch=batch)
    assert (again.changed, again.names) == (False, ["meter-17"])
    await enrol(fleet, "meter-18", token=other)
    await enrol(fleet, "meter-17", token=await promised(fleet, "meter-17", "south"))
    device = await fleet.database.read(lambda connection: devices.find(connection, "meter-17"))
    assert device is not None
    assert (device.group, device.state, device.trial_ends_at) == ("south", DeviceState.ACTIVE, None)
    assert (await revoke(fleet, "meter-17")).names == []


async def test_what_else_admits_a_name_does_not_once_it_is_revoked(fleet: Fleet) -> None:
    await group(fleet, "claim", "listed", "approval", maximum_devices=1)
    digest = spki_fingerprint(KEY.public_key()).hex()
    approvals = ApprovalService(fleet.database, fleet.clock)
    await DeviceListService(fleet.database, fleet.clock).add("line", [("meter-1", digest)], by="admin")
    for name, key in (("meter-2", KEY), ("meter-3", generate_key())):
        with pytest.raises(Pending):
            await enrol(fleet, name, key=key, label="line")
    ((asked, _), _) = await approvals.page(limit=9, after=0, group=None, state=None)
    await approvals.decide(asked.id, approve=True, by="admin")
    with pytest.raises(Refused, match="DEVICE_UNKNOWN"):
        await revoke(fleet, "meter-3")  # A stranger may ask for any name.
    assert (await revoke(fleet, "meter-1", "meter-2", batch=True)).names == ["meter-1", "meter-2"]
    assert await refusal(fleet, "meter-1", key=KEY, label="line") is Code.CERTIFICATE_REVOKED
    assert await refusal(fleet, "meter-2", key=KEY, label="line") is Code.CERTIFICATE_REVOKED
    batch = await claim(fleet)
    await enrol(fleet, "meter-9", certificate=batch)  # Neither of them has the group's only place.
    assert await refusal(fleet, "meter-1", certificate=batch) is Code.NAME_TAKEN


async def test_a_name_that_was_decommissioned_is_promised_to_nobody_any_more(fleet: Fleet) -> None:
    token = await promised(fleet, "meter-17")
    outcome = await fleet.revocation.decommission("meter-17", by="admin")
    assert (outcome.changed, outcome.names) == (True, ["meter-17"])
    assert await refusal(fleet, "meter-17", token=token) is Code.TOKEN_VOID
    with pytest.raises(Refused, match="DEVICE_DECOMMISSIONED"):
        await promised(fleet, "meter-17")


@pytest.mark.parametrize("batch", [False, True])
async def test_a_role_that_was_promised_ends_with_the_name(fleet: Fleet, batch: bool) -> None:
    """Also if it is promised a second time, or was by a token that has expired."""
    await operator(fleet, "admin", role=OperatorRole.ADMIN)
    order = TokenOrder(["bert"], None, Role.OPERATOR, operator_role=OperatorRole.ADMIN)
    for _ in range(2):
        await fleet.token_service.create(order, by="admin")
        assert (await revoke(fleet, "bert", batch=batch)).names == ["bert"]
        assert await fleet.database.read(lambda c: operators.role_of(c, "bert")) is OperatorRole.AUDITOR
        fleet.clock.advance(timedelta(minutes=1))
    await fleet.token_service.create(replace(order, devices=["carl"]), by="admin")
    fleet.clock.advance(timedelta(days=1))
    assert (await revoke(fleet, "carl", batch=batch)).names == ["carl"]
    for name in ("bert", "carl"):
        await enrol(fleet, name, token=await promised(fleet, name, role=Role.OPERATOR))
        assert await fleet.database.read(partial(operators.role_of, name=name)) is OperatorRole.AUDITOR


async def test_a_role_of_an_older_promise_ends_too_and_another_may_be_given_to_whom_comes_then(fleet: Fleet) -> None:
    await operator(fleet, "admin", role=OperatorRole.ADMIN)
    admin = TokenOrder(["bert"], None, Role.OPERATOR, operator_role=OperatorRole.ADMIN)
    await fleet.token_service.create(admin, by="admin")
    fleet.clock.advance(timedelta(days=1))
    await promised(fleet, "bert")
    assert (await revoke(fleet, "bert")).names == ["bert"]
    assert await fleet.database.read(lambda c: operators.role_of(c, "bert")) is OperatorRole.AUDITOR
    fleet.clock.advance(timedelta(minutes=1))
    (token,) = await fleet.token_service.create(admin, by="admin")
    await enrol(fleet, "bert", token=TokenCredential("bert", token.token))
    assert "bert" in await fleet.database.read(lambda c: operators.usable_admins(c, fleet.clock()))


@pytest.mark.parametrize("batch", [False, True])
async def test_what_is_over_promises_a_name_to_nobody(fleet: Fleet, batch: bool) -> None:
    await group(fleet, "approval")
    approvals = ApprovalService(fleet.database, fleet.clock)
    with pytest.raises(Pending):
        await enrol(fleet, "meter-2", key=KEY, label="line")
    ((asked,), _) = await approvals.page(limit=9, after=0, group=None, state=None)
    await approvals.decide(asked.id, approve=True, by="admin")
    await promised(fleet, "meter-1")
    fleet.clock.advance(timedelta(days=90))
    for name in ("meter-1", "meter-2"):
        with pytest.raises(Refused, match="DEVICE_UNKNOWN"):
            await revoke(fleet, name, batch=batch)


async def test_many_groups_are_asked_together(fleet: Fleet) -> None:
    """It is done under the lock of all writers."""
    for number in range(30):
        await group(fleet, "listed", "approval", name=f"line-{number:02}")
    await DeviceListService(fleet.database, fleet.clock).add("line-29", [("meter-1", None)], by="admin")
    asked, outcome = await noted(revoke(fleet, "meter-1"))
    assert outcome.names == ["meter-1"]
    device = await fleet.database.read(lambda connection: devices.find(connection, "meter-1"))
    assert device is not None
    assert device.group == "line-29"
    for table in ("FROM listed_devices", "FROM approvals"):
        assert len([statement for statement, _ in asked if table in statement]) == 1


async def test_a_name_that_was_ended_by_a_clock_that_was_ahead_can_be_promised_in_another_group(fleet: Fleet) -> None:
    """Until that time came it kept its group, and took a place there."""
    await group(fleet, "claim", "token", maximum_devices=1)
    await promised(fleet, "meter-17", "line")
    fleet.clock.advance(timedelta(minutes=30))
    await revoke(fleet, "meter-17")
    fleet.clock.advance(timedelta(minutes=-30))
    await enrol(fleet, "meter-9", certificate=await claim(fleet))
    await enrol(fleet, "meter-17", token=await promised(fleet, "meter-17", "south"))
