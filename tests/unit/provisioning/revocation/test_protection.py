"""The last admin's way in, and the service itself, are not ended by mistake."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.operator_roles import OperatorRoleService
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Refused, RefusedTogether
from provisioning.operator_role import OperatorRole
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.store import audit, devices, operators, revocations, token_inventory, tokens
from provisioning.store.audit import Action
from provisioning.store.devices import DeviceState
from provisioning.store.token_inventory import KnownToken, TokenFilter, TokenState
from tests.support.fleet import Fleet
from tests.support.requests import csr_der

REASON = RevocationReason.KEY_COMPROMISE
Leaving = Callable[[str], Coroutine[Any, Any, object]]
"""What ends an operator, given his name."""
Ending = Callable[[Fleet, str, str], Coroutine[Any, Any, Any]]

ENDINGS: dict[str, Ending] = {
    "revoke": lambda fleet, name, _: fleet.revocation.revoke_device(name, REASON, by="anna"),
    "decommission": lambda fleet, name, _: fleet.revocation.decommission(name, by="anna"),
    "revoke by serial": lambda fleet, _, serial: fleet.revocation.revoke_serial(serial, REASON, by="anna"),
    "revoke in a batch": lambda fleet, name, _: fleet.revocation.revoke_batch(["meter-1", name], [], REASON, by="anna"),
    "a serial in a batch": lambda fleet, _, serial: fleet.revocation.revoke_batch([], [serial], REASON, by="anna"),
    "decommission in a batch": lambda fleet, name, _: fleet.revocation.decommission_batch(["meter-1", name], by="anna"),
    "suspend in a batch": lambda fleet, name, _: fleet.suspension.suspend_batch(["meter-1", name], [], by="anna"),
    "suspend a serial in a batch": lambda fleet, _, serial: fleet.suspension.suspend_batch([], [serial], by="anna"),
    "suspend": lambda fleet, name, _: fleet.suspension.suspend_device(name, by="anna"),
    "suspend by serial": lambda fleet, _, serial: fleet.suspension.suspend_serial(serial, by="anna"),
}


async def enrol_admin(fleet: Fleet, name: str, role: OperatorRole = OperatorRole.ADMIN) -> str:
    """Return the serial number of a new admin's certificate, or that of an operator of another *role*."""
    order = TokenOrder([name], None, Role.OPERATOR, operator_role=role)
    (token,) = await fleet.token_service.create(order, by="admin")
    certificate = await fleet.enrolment.enrol(csr_der(names=[name]), TokenCredential(name, token.token))
    return f"{certificate.serial_number:x}"


def added(connection: Connection, name: str, role: Role, group: str | None, now: datetime) -> None:
    devices.add(connection, name, role, group, now)


@pytest.mark.parametrize("ending", ENDINGS)
async def test_the_last_admin_is_kept_and_one_of_two_is_not(fleet: Fleet, ending: str) -> None:
    await fleet.enrol("meter-1")
    serial = await enrol_admin(fleet, "anna")
    with pytest.raises(Refused) as caught:
        await ENDINGS[ending](fleet, "anna", serial)
    assert (caught.value.code, "make another admin first" in caught.value.detail) == (Code.LAST_ADMIN, True)
    if "batch" in ending:
        assert isinstance(caught.value, RefusedTogether)
        assert [each.name for each in caught.value.items] == [serial if "serial" in ending else "anna"]
    assert await fleet.database.read(revocations.newest) == 0, "nothing of it was done"
    await enrol_admin(fleet, "bert")
    await ENDINGS[ending](fleet, "anna", serial)
    assert await fleet.database.read(revocations.newest) > 0


@pytest.mark.parametrize("doing", ["revoked", "suspended"])
@pytest.mark.parametrize("by_serial", [False, True])
async def test_of_many_the_last_admin_is_the_one_who_is_refused_and_no_operator_beside_him(
    fleet: Fleet, doing: str, *, by_serial: bool
) -> None:
    """Else whoever goes on without him who was named would leave in the one, and be refused the other again."""
    serials = {
        "meter-1": f"{(await fleet.enrol('meter-1')).serial_number:x}",
        "eve": await enrol_admin(fleet, "eve", OperatorRole.AUDITOR),
        "anna": await enrol_admin(fleet, "anna"),
    }

    async def end(*names: str) -> None:
        batch: tuple[list[str], list[str]] = ([], [serials[each] for each in names]) if by_serial else ([*names], [])
        if doing == "revoked":
            await fleet.revocation.revoke_batch(*batch, REASON, by="anna")
        else:
            await fleet.suspension.suspend_batch(*batch, by="anna")

    with pytest.raises(RefusedTogether) as caught:
        await end(*serials)
    (refused,) = caught.value.items
    assert (refused.kind, refused.name) == (("serial", serials["anna"]) if by_serial else ("device", "anna"))
    assert refused.detail.startswith("anna is the last admin")
    await end("meter-1", "eve")


async def test_the_last_admin_stays_also_if_who_gave_him_the_role_is_ended_with_him(fleet: Fleet) -> None:
    await enrol_admin(fleet, "anna")
    await enrol_admin(fleet, "bert", OperatorRole.AUDITOR)
    roles = OperatorRoleService(fleet.database, fleet.clock)
    await roles.grant("bert", OperatorRole.ADMIN, by="anna")
    await roles.grant("anna", OperatorRole.AUDITOR, by="bert")
    with pytest.raises(RefusedTogether) as caught:
        await fleet.revocation.revoke_batch(["anna", "bert"], [], REASON, by="bert")
    assert [each.name for each in caught.value.items] == ["bert"]


@pytest.mark.parametrize("who", ["auditor", "device", DeviceState.SUSPENDED, DeviceState.DECOMMISSIONED])
async def test_who_else_has_a_good_certificate_is_not_an_admin_who_is_left(fleet: Fleet, who: str) -> None:
    serial = await enrol_admin(fleet, "anna")
    if who == "device":
        await fleet.enrol("bert")
        admin = OperatorRole.ADMIN
        await fleet.database.write(partial(operators.grant, name="bert", role=admin, by="anna", now=fleet.clock()))
    else:
        await enrol_admin(fleet, "bert", OperatorRole.AUDITOR if who == "auditor" else OperatorRole.ADMIN)
    if isinstance(who, DeviceState):  # Its certificates are still to be revoked, or put on hold.
        bert = await fleet.database.read(lambda connection: devices.find(connection, "bert"))
        assert bert is not None
        await fleet.database.write(
            partial(devices.set_state, device_ids=[bert.id], state=DeviceState(who), since=fleet.clock())
        )
    for ending in ("revoke", "suspend by serial"):
        with pytest.raises(Refused, match="LAST_ADMIN"):
            await ENDINGS[ending](fleet, "anna", serial)


@pytest.mark.parametrize("ending", ENDINGS)
async def test_where_there_is_no_admin_left_anyway_other_operators_can_be_ended(fleet: Fleet, ending: str) -> None:
    """Their keys may be lost while the only admin is late with a renewal."""
    await enrol_admin(fleet, "anna")
    fleet.clock.advance(timedelta(days=999))
    await fleet.enrol("meter-1")
    serial = await enrol_admin(fleet, "eve", OperatorRole.AUDITOR)
    assert (await ENDINGS[ending](fleet, "eve", serial)).changed


@pytest.mark.parametrize("ending", [each for each in ENDINGS if "serial" not in each])
async def test_the_service_itself_is_not_ended_as_a_whole(fleet: Fleet, ending: str) -> None:
    await fleet.enrol("meter-1")
    await fleet.database.write(
        lambda connection: devices.add(connection, "provisioning", Role.SERVICE, None, fleet.clock())
    )
    with pytest.raises(Refused) as caught:
        await ENDINGS[ending](fleet, "provisioning", "")
    assert caught.value.code is Code.PROTECTED


async def test_others_of_its_name_or_of_its_role_are_not_the_service(fleet: Fleet) -> None:
    for name, role, group in (("provisioning", Role.DEVICE, "north"), ("backend", Role.SERVICE, None)):
        await fleet.database.write(partial(added, name=name, role=role, group=group, now=fleet.clock()))
        assert (await fleet.revocation.revoke_device(name, REASON, by="anna")).changed


@pytest.mark.parametrize("ending", ["revoke", "revoke by serial", "revoke in a batch", "a serial in a batch"])
async def test_what_was_made_with_an_operator_s_compromised_key_is_worth_nothing(fleet: Fleet, ending: str) -> None:
    await fleet.enrol("meter-1")
    serial = await enrol_admin(fleet, "anna")
    await enrol_admin(fleet, "bert")

    async def token_of(operator: str, device: str) -> TokenCredential:
        (made,) = await fleet.token_service.create(TokenOrder([device], "north"), by=operator)
        return TokenCredential(device, made.token)

    by_anna, by_bert = await token_of("anna", "meter-2"), await token_of("bert", "meter-3")
    await ENDINGS[ending](fleet, "anna", serial)
    with pytest.raises(Refused, match="TOKEN_VOID"):
        await fleet.enrolment.enrol(csr_der(names=["meter-2"]), by_anna)
    await fleet.enrolment.enrol(csr_der(names=["meter-3"]), by_bert)


@pytest.mark.parametrize("ending", ["revoke", "revoke by serial", "revoke in a batch", "a serial in a batch"])
async def test_tokens_that_are_void_are_audited_though_nothing_else_was_left_to_end(fleet: Fleet, ending: str) -> None:
    await fleet.enrol("meter-1")
    serial = await enrol_admin(fleet, "anna")
    await enrol_admin(fleet, "bert")
    for name in ("meter-1", "anna"):
        await fleet.revocation.revoke_device(name, RevocationReason.KEY_COMPROMISE, by="bert")
    (made,) = await fleet.token_service.create(TokenOrder(["meter-2"], "north"), by="anna")
    outcomes = [await ENDINGS[ending](fleet, "anna", serial) for _ in range(2)]
    assert [each.changed for each in outcomes] == [True, False]
    with pytest.raises(Refused, match="TOKEN_VOID"):
        await fleet.enrolment.enrol(csr_der(names=["meter-2"]), TokenCredential("meter-2", made.token))
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    facts = [json.loads(each.details) for each in entries if each.actor == "anna" and each.action == Action.REVOKED]
    assert [(each["serials"], each["tokens_voided"]) for each in facts] == [([], 1)]


async def test_an_admin_who_leaves_does_not_come_back_by_a_token_of_his_own(fleet: Fleet) -> None:
    roles = OperatorRoleService(fleet.database, fleet.clock)
    serials: dict[str, str] = {}

    def by_serial(end: Callable[..., Coroutine[Any, Any, object]], *why: RevocationReason) -> Leaving:
        return lambda maker: end(serials[maker], *why, by="bert")

    leaving: dict[str, Leaving] = {
        "decommissioned": partial(fleet.revocation.decommission, by="bert"),
        "revoked": partial(fleet.revocation.revoke_device, reason=RevocationReason.UNSPECIFIED, by="bert"),
        "demoted": partial(roles.grant, role=OperatorRole.ENROLLER, by="bert"),
        "revoked-by-serial": by_serial(fleet.revocation.revoke_serial, RevocationReason.UNSPECIFIED),
        "suspended-by-serial": by_serial(fleet.suspension.suspend_serial),
        "suspended": partial(fleet.suspension.suspend_device, by="bert"),
    }
    await enrol_admin(fleet, "bert")
    for maker, leave in leaving.items():
        serials[maker] = await enrol_admin(fleet, maker)
        orders = [
            TokenOrder([f"helper-{maker}"], None, Role.OPERATOR, operator_role=OperatorRole.ADMIN),
            TokenOrder([f"backend-{maker}"], None, Role.SERVICE),
            TokenOrder([f"mqtt-{maker}"], None, Role.BROKER),
        ]
        made = [(await fleet.token_service.create(order, by=maker))[0] for order in orders]
        used = made.pop()
        request, token = csr_der(names=[used.grant.device or ""]), TokenCredential(used.grant.device or "", used.token)
        certificate = await fleet.enrolment.enrol(request, token)
        await leave(maker)
        assert await fleet.enrolment.enrol(request, token) == certificate, "an answer that was lost is given again"
        for each in made:
            name = each.grant.device or ""
            for_good = maker in {"decommissioned", "revoked", "revoked-by-serial"}
            said = "this token was voided" if for_good else "this token's maker cannot promise it now"
            with pytest.raises(Refused, match=f"TOKEN_VOID: {said}"):
                await fleet.enrolment.enrol(csr_der(names=[name]), TokenCredential(name, each.token))
            (listed,) = await tokens_in(fleet, TokenState.VOID, name)
            since = fleet.clock() if for_good else None
            assert (listed.state, listed.voided_at, listed.created_by) == (TokenState.VOID, since, maker)
            assert await tokens_in(fleet, TokenState.OPEN, name) == []
    assert await fleet.database.read(lambda connection: tokens.count_open(connection, fleet.clock())) == 0
    (of_helper,) = await tokens_in(fleet, TokenState.VOID, "helper-suspended")
    told = await fleet.token_service.void(of_helper.id, lambda _: None, by="bert")
    assert told.voided_at == fleet.clock(), "else it is good again when its maker is"
    await fleet.suspension.resume_device("suspended", by="bert")
    assert [len(await tokens_in(fleet, TokenState.OPEN, each)) for each in ("helper-suspended", name)] == [0, 1]
    await fleet.enrolment.enrol(csr_der(names=[name]), TokenCredential(name, each.token))


async def tokens_in(fleet: Fleet, state: TokenState, device: str) -> list[KnownToken]:
    """Return the tokens for *device* in *state*."""
    wanted, now = TokenFilter(state=state, device=device), fleet.clock()
    found, _ = await fleet.database.read(
        lambda connection: token_inventory.page(connection, wanted, limit=9, after=0, now=now)
    )
    return found


async def test_what_an_admin_promises_is_as_good_as_the_last_of_his_certificates(fleet: Fleet) -> None:
    await enrol_admin(fleet, "bert")
    lost = await enrol_admin(fleet, "anna")
    fleet.clock.advance(timedelta(days=10))
    await enrol_admin(fleet, "anna")
    order = TokenOrder(["backend"], None, Role.SERVICE, ttl=timedelta(days=60))
    (made,) = await fleet.token_service.create(order, by="anna")
    asked = csr_der(names=["backend"]), TokenCredential("backend", made.token)
    await fleet.revocation.revoke_serial(lost, RevocationReason.SUPERSEDED, by="bert")
    assert len(await tokens_in(fleet, TokenState.OPEN, "backend")) == 1, "her other certificate is good"
    fleet.clock.advance(timedelta(days=31))
    with capture_logs() as logs, pytest.raises(Refused, match="TOKEN_VOID: this token's maker cannot promise it now"):
        await fleet.enrolment.enrol(*asked)
    assert [(each["maker"], each["why"]) for each in logs if "maker" in each] == [("anna", "has no valid certificate")]
    assert len(await tokens_in(fleet, TokenState.VOID, "backend")) == 1
    await enrol_admin(fleet, "anna")
    await fleet.enrolment.enrol(*asked)
