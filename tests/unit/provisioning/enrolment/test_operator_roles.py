from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.authentication import authenticate_operator
from provisioning.enrolment.operator_roles import OperatorRoleService
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.keys import generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.store import audit, operators, unfinished_key_ends
from provisioning.store.certificates_of_key import DeviceKey
from provisioning.store.devices import DeviceState
from provisioning.store.tables import certificates, devices, revocations
from tests.support.fleet import Fleet
from tests.support.many import fill
from tests.support.requests import csr_der
from tests.support.searched import noted, rows_read, scanned
from tests.support.ways import HOUR, claim, enrol, group


async def enrol_operator(fleet: Fleet, name: str, role: OperatorRole | None) -> OperatorRole:
    """Enrol an operator; return what he may do."""
    order = TokenOrder([name], None, Role.OPERATOR, operator_role=role)
    (token,) = await fleet.token_service.create(order, by="admin")
    certificate = await fleet.enrolment.enrol(csr_der(names=[name]), TokenCredential(name, token.token))
    found = await fleet.database.read(lambda connection: authenticate_operator(connection, certificate, fleet.clock()))
    assert found.device.name == name
    return found.role


async def refusal(fleet: Fleet, name: str, role: OperatorRole) -> Refused:
    with pytest.raises(Refused) as caught:
        await OperatorRoleService(fleet.database, fleet.clock).grant(name, role, by="anna")
    return caught.value


async def test_a_new_operator_may_only_read_unless_his_token_says_more(fleet: Fleet) -> None:
    assert await enrol_operator(fleet, "anna", None) is OperatorRole.AUDITOR
    assert await enrol_operator(fleet, "bert", OperatorRole.ENROLLER) is OperatorRole.ENROLLER
    assert await enrol_operator(fleet, "bert", None) is OperatorRole.ENROLLER, "a new certificate changes nothing"
    with pytest.raises(
        Refused, match="tokens that bert has made end with it: operator grant bert --role auditor first"
    ):
        await enrol_operator(fleet, "bert", OperatorRole.AUDITOR)
    found = [each.grant for each in await OperatorRoleService(fleet.database, fleet.clock).every()]
    assert [(each.name, each.role, each.granted_by) for each in found] == [
        ("anna", OperatorRole.AUDITOR, None),
        ("bert", OperatorRole.ENROLLER, "admin"),
    ]


async def test_a_role_that_a_token_has_named_can_be_changed_before_he_enrols(fleet: Fleet) -> None:
    service = OperatorRoleService(fleet.database, fleet.clock)
    order = TokenOrder(["anna"], None, Role.OPERATOR, operator_role=OperatorRole.ADMIN)
    (token,) = await fleet.token_service.create(order, by="admin")
    await service.grant("anna", OperatorRole.ENROLLER, by="admin")
    certificate = await fleet.enrolment.enrol(csr_der(names=["anna"]), TokenCredential("anna", token.token))
    found = await fleet.database.read(lambda connection: authenticate_operator(connection, certificate, fleet.clock()))
    assert found.role is OperatorRole.ENROLLER


async def test_an_admin_whose_certificates_are_revoked_or_have_ended_is_none_who_can_get_in(fleet: Fleet) -> None:
    service = OperatorRoleService(fleet.database, fleet.clock)
    order = TokenOrder(["bert"], None, Role.OPERATOR, operator_role=OperatorRole.ADMIN)
    (token,) = await fleet.token_service.create(order, by="admin")
    certificate = await fleet.enrolment.enrol(csr_der(names=["bert"]), TokenCredential("bert", token.token))
    await enrol_operator(fleet, "carl", OperatorRole.ADMIN)
    carls = {each.grant.name: each.good_until for each in await service.every()}["carl"]
    assert carls is not None
    fleet.clock.advance(carls - fleet.clock() - timedelta(hours=1))
    await enrol_operator(fleet, "anna", OperatorRole.ADMIN)
    await fleet.revocation.revoke_serial(f"{certificate.serial_number:x}", RevocationReason.SUPERSEDED, by="anna")
    assert [each.good_until for each in await service.every() if each.grant.name != "anna"] == [None, carls]
    assert (await service.grant("anna", OperatorRole.ENROLLER, by="anna")).grant.name == "anna", "carl is left"
    await service.grant("anna", OperatorRole.ADMIN, by="carl")

    def report(connection: Connection) -> DeviceKey:
        """Have the key of carl's certificate reported as compromised; the certificate is still to be revoked."""
        of_carl = select(certificates.c.device_id, certificates.c.spki_sha256).join(devices)
        key = DeviceKey(*connection.execute(of_carl.where(devices.c.name == "carl")).one())
        unfinished_key_ends.begin(connection, [key], invalidity_date=None, ended_at=fleet.clock(), ended_by="anna")
        return key

    reported = await fleet.database.write(report)
    assert [each.good_until for each in await service.every() if each.grant.name != "anna"] == [None, None]
    assert (await refusal(fleet, "anna", OperatorRole.ENROLLER)).code is Code.LAST_ADMIN
    await fleet.database.write(lambda connection: unfinished_key_ends.finish(connection, reported))
    carl = update(devices).where(devices.c.name == "carl")
    for ended in ("suspended_at", "revoked_at", "decommissioned_at"):  # His certificate is still to be revoked.
        for at in (fleet.clock(), None):
            assert at or (await refusal(fleet, "anna", OperatorRole.ENROLLER)).code is Code.LAST_ADMIN
            change = carl.values({ended: at})
            await fleet.database.write(lambda connection, change=change: connection.execute(change))  # type: ignore[misc]
    fleet.clock.advance(timedelta(hours=1))
    assert [each.good_until for each in await service.every() if each.grant.name != "anna"] == [None, None]
    assert (await refusal(fleet, "anna", OperatorRole.ENROLLER)).code is Code.LAST_ADMIN


async def test_the_last_admin_who_can_get_in_stays_one(fleet: Fleet) -> None:
    service = OperatorRoleService(fleet.database, fleet.clock)
    await enrol_operator(fleet, "anna", OperatorRole.ADMIN)
    await enrol_operator(fleet, "bert", OperatorRole.ADMIN)
    await fleet.revocation.revoke_device("bert", RevocationReason.SUPERSEDED, by="anna")
    error = await refusal(fleet, "anna", OperatorRole.ENROLLER)
    assert (error.code, "anna is the last admin" in error.detail) == (Code.LAST_ADMIN, True)
    granted = (await service.grant("anna", OperatorRole.ADMIN, by="anna")).grant
    assert (granted.name, granted.role, granted.granted_by) == ("anna", OperatorRole.ADMIN, "anna"), (
        "that he is, he may"
    )
    assert [each.grant.name for each in await service.every()] == ["anna", "bert"]
    await enrol_operator(fleet, "carl", OperatorRole.ADMIN)
    await fleet.token_service.create(TokenOrder(["meter-1"], "north", Role.DEVICE), by="anna")
    await service.grant("anna", OperatorRole.AUDITOR, by="carl", keep_tokens=True)
    assert await enrol_operator(fleet, "anna", OperatorRole.AUDITOR) is OperatorRole.AUDITOR
    assert (await service.grant("anna", OperatorRole.AUDITOR, by="carl")).tokens_voided == 1, "what was kept"
    fleet.clock.advance(timedelta(days=400))
    await service.grant("carl", OperatorRole.AUDITOR, by="carl")  # Nobody can get in any more: nothing to protect.
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 1000))
    granted_roles = [
        (each.subject, json.loads(each.details)) for each in entries if each.action == "operator role granted"
    ]
    assert granted_roles == [
        ("anna", {"role": "admin"}),
        ("bert", {"role": "admin"}),
        ("anna", {"role": "admin"}),
        ("carl", {"role": "admin"}),
        ("anna", {"role": "auditor", "tokens_kept": 1}),
        ("anna", {"role": "auditor"}),
        ("anna", {"role": "auditor", "tokens_voided": 1}),
        ("carl", {"role": "auditor"}),
    ]


async def test_operators_are_listed_without_looking_at_the_devices(fleet: Fleet) -> None:
    """Of three hundred thousand it took forty milliseconds."""
    await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, 5000, fleet.clock()))
    await enrol_operator(fleet, "anna", OperatorRole.ADMIN)
    await fleet.database.write(lambda connection: connection.exec_driver_sql("ANALYZE"))
    asked, found = await noted(OperatorRoleService(fleet.database, fleet.clock).every())
    assert [each.grant.name for each in found] == ["anna"]
    assert len(asked) >= 2
    assert await fleet.database.read(lambda connection: scanned(connection, asked)) == set()


async def test_who_gets_in_is_found_by_the_index_of_each_operators_certificates(fleet: Fleet) -> None:
    """Also without statistics, as after a restore: with 300,000 certificates PostgreSQL looked at all of them."""

    def look(connection: Connection) -> tuple[list[str], set[str], int]:
        before = rows_read(connection)
        shown = [each.grant.name for each in operators.every(connection, fleet.clock()) if each.good_until is not None]
        admins = operators.usable_admins(connection, fleet.clock())
        return shown, admins, rows_read(connection) - before

    await fleet.database.write(lambda connection: fill(connection, fleet.issuer.key_id, 30_000, fleet.clock()))
    await fleet.database.write(lambda connection: connection.execute(delete(revocations).where(text("sequence > 9"))))
    names = [f"admin-{number}" for number in range(30)]
    for name in names:
        await enrol_operator(fleet, name, OperatorRole.ADMIN)
    assert await fleet.database.write(look) == (sorted(names), set(names), 0)


async def test_a_list_of_operators_says_who_gets_in_and_until_when(fleet: Fleet) -> None:
    for name in ("anna", "bert", "carl", "dora"):
        await enrol_operator(fleet, name, OperatorRole.ADMIN)
    fleet.clock.advance(timedelta(days=10))
    await enrol_operator(fleet, "anna", None)
    await fleet.suspension.suspend_device("bert", by="anna")
    await fleet.revocation.revoke_device("carl", RevocationReason.KEY_COMPROMISE, by="anna")
    await fleet.database.write(
        lambda connection: operators.grant(connection, "emil", OperatorRole.ENROLLER, by="anna", now=fleet.clock())
    )
    await fleet.enrol("meter-1")

    async def listed() -> dict[str, tuple[DeviceState | None, int | None]]:
        now = fleet.clock()
        return {
            each.grant.name: (each.state, None if each.good_until is None else (each.good_until - now).days)
            for each in await OperatorRoleService(fleet.database, fleet.clock).every()
        }

    before = await listed()
    assert before["anna"][0] is before["dora"][0] is DeviceState.ACTIVE
    days = before["dora"][1]
    assert days is not None
    assert before["anna"][1] == days + 10, "the certificate that ends last counts"
    assert before["bert"] == (DeviceState.SUSPENDED, None)
    assert before["carl"] == (DeviceState.REVOKED, None)
    assert before["emil"] == (None, None)
    assert set(before) == {"anna", "bert", "carl", "dora", "emil"}, "a device is none"
    fleet.clock.advance(timedelta(days=days + 1))
    assert (await listed())["dora"] == (DeviceState.ACTIVE, None), "it has ended"


async def test_a_device_is_granted_nothing_and_neither_is_a_stranger(fleet: Fleet) -> None:
    await fleet.enrol("meter-1")
    assert (await refusal(fleet, "meter-1", OperatorRole.ADMIN)).code is Code.NAME_TAKEN
    assert (await refusal(fleet, "nobody", OperatorRole.ADMIN)).code is Code.DEVICE_UNKNOWN
    for order in (
        TokenOrder(["meter-2"], None, Role.DEVICE, operator_role=OperatorRole.ADMIN),
        TokenOrder([], "north", Role.OPERATOR, operator_role=OperatorRole.ADMIN),
    ):
        with pytest.raises(Refused, match="operator_role is for tokens with role operator"):
            await fleet.token_service.create(order, by="admin")


async def test_who_may_choose_a_name_does_not_choose_that_of_an_admin_who_has_yet_to_enrol(fleet: Fleet) -> None:
    """A token for any operator of a group buys a name that nobody has; and whoever has a name has the role of it."""
    service = fleet.token_service
    (hers,) = await service.create(TokenOrder(["alice"], None, Role.OPERATOR, operator_role=OperatorRole.ADMIN), by="a")
    anybody, another = await service.create(TokenOrder(group="ops", role=Role.OPERATOR, count=2), by="a")
    with pytest.raises(Refused, match="NAME_TAKEN: alice is promised to somebody"):
        await fleet.enrolment.enrol(csr_der(names=["alice"]), TokenCredential("alice", anybody.token))
    key = generate_key()
    bob = await fleet.enrolment.enrol(csr_der(key, names=["bob"]), TokenCredential("bob", anybody.token))
    await OperatorRoleService(fleet.database, fleet.clock).grant("bob", OperatorRole.ENROLLER, by="a")
    for token in (anybody, another):
        again = await fleet.enrolment.enrol(csr_der(key, names=["bob"]), TokenCredential("bob", token.token))
        assert again == bob, "the same request is answered again, whatever he may do by now"
    alice = await fleet.enrolment.enrol(csr_der(names=["alice"]), TokenCredential("alice", hers.token))
    admitted = await fleet.database.read(lambda connection: authenticate_operator(connection, alice, fleet.clock()))
    assert admitted.role is OperatorRole.ADMIN


async def test_a_name_that_is_an_admin_s_is_not_chosen_either_once_a_trial_of_it_has_been_lost(fleet: Fleet) -> None:
    await group(fleet, "claim")
    service = fleet.token_service
    await service.create(TokenOrder(["alice"], None, Role.OPERATOR, operator_role=OperatorRole.ADMIN), by="a")
    (anybody,) = await service.create(TokenOrder(group="ops", role=Role.OPERATOR, ttl=4 * HOUR), by="a")
    fleet.clock.advance(HOUR)  # The token ends, and her role stays.
    await enrol(fleet, "alice", certificate=await claim(fleet))
    fleet.clock.advance(2 * HOUR)
    with pytest.raises(Refused, match="NAME_TAKEN: alice is promised to somebody"):
        await enrol(fleet, "alice", token=TokenCredential("alice", anybody.token))


async def role_of_new(fleet: Fleet, name: str, made_by: str, *, before: bool) -> OperatorRole:
    """Enrol *name* by a token that *made_by* makes without naming a role, for whom "eve" has named one, since she left.

    *before*: his token was there first.
    """
    theirs = TokenOrder([name], None, Role.OPERATOR)
    service = fleet.token_service
    (token,) = await service.create(theirs, by=made_by) if before else [None]
    await service.create(replace(theirs, operator_role=OperatorRole.ADMIN), by="eve")
    await fleet.revocation.revoke_device("eve", RevocationReason.UNSPECIFIED, by=made_by)
    (token,) = [token] if token is not None else await service.create(theirs, by=made_by)
    certificate = await fleet.enrolment.enrol(csr_der(names=[name]), TokenCredential(name, token.token))
    found = await fleet.database.read(lambda connection: authenticate_operator(connection, certificate, fleet.clock()))
    return found.role


@pytest.mark.parametrize("before", [False, True])
async def test_a_role_that_a_dismissed_admin_has_promised_is_nobody_s(fleet: Fleet, *, before: bool) -> None:
    for name in ("anna", "eve"):
        await enrol_operator(fleet, name, OperatorRole.ADMIN)
    assert await role_of_new(fleet, "zoe", "anna", before=before) is OperatorRole.AUDITOR
    listed = {each.grant.name: each.grant for each in await OperatorRoleService(fleet.database, fleet.clock).every()}
    assert (listed["zoe"].role, listed["eve"].role) == (OperatorRole.AUDITOR, OperatorRole.ADMIN)
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 1000))
    *_, last = [each for each in entries if each.action == "operator role granted" and each.subject == "zoe"]
    assert (last.actor, json.loads(last.details)["role"]) == ("anna", "auditor")


async def test_who_comes_back_after_a_revocation_has_no_role_from_an_admin_who_has_left(fleet: Fleet) -> None:
    """A thief with an admin's key gives it to one of whom nobody thinks; the admin gets a new certificate soon."""
    roles = OperatorRoleService(fleet.database, fleet.clock)
    for name, role in {"anna": "admin", "eve": "admin", "yan": "auditor", "zoe": "auditor"}.items():
        await enrol_operator(fleet, name, OperatorRole(role))
    await fleet.revocation.revoke_batch(["yan", "zoe"], [], RevocationReason.UNSPECIFIED, by="anna")
    await roles.grant("yan", OperatorRole.ADMIN, by="anna")
    await roles.grant("zoe", OperatorRole.ADMIN, by="eve")
    invited = TokenOrder(["xia"], None, Role.OPERATOR)
    (hers,) = await fleet.token_service.create(replace(invited, operator_role=OperatorRole.ENROLLER), by="anna")
    await fleet.token_service.create(replace(invited, operator_role=OperatorRole.ADMIN), by="eve")
    outcome = await fleet.revocation.revoke_device("eve", RevocationReason.KEY_COMPROMISE, by="anna")
    assert outcome.departed[0].roles_ended == ["xia", "zoe"]
    assert await enrol_operator(fleet, "eve", None) is OperatorRole.ADMIN
    assert await enrol_operator(fleet, "yan", None) is OperatorRole.ADMIN
    assert await enrol_operator(fleet, "zoe", None) is OperatorRole.AUDITOR
    certificate = await fleet.enrolment.enrol(csr_der(names=["xia"]), TokenCredential("xia", hers.token))
    found = await fleet.database.read(lambda connection: authenticate_operator(connection, certificate, fleet.clock()))
    assert found.role is OperatorRole.AUDITOR
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 1000))
    (last,) = [json.loads(each.details) for each in entries if "given_by" in each.details and each.subject == "zoe"]
    assert last == {"role": "auditor", "given_by": "eve", "reason": "keyCompromise"}


@pytest.mark.parametrize("end", ["void", "expired", "open"])
async def test_a_role_ends_with_the_last_token_for_the_name_that_was_to_have_it(fleet: Fleet, end: str) -> None:
    await enrol_operator(fleet, "anna", OperatorRole.ADMIN)
    order = TokenOrder(["zoe"], None, Role.OPERATOR, operator_role=OperatorRole.ADMIN)
    (promise,) = await fleet.token_service.create(order, by="anna")
    if end == "void":
        await fleet.token_service.void(promise.number, lambda _: None, by="anna")
    elif end == "expired":
        fleet.clock.advance(2 * HOUR)
    kept = OperatorRole.ADMIN if end == "open" else OperatorRole.AUDITOR
    assert await enrol_operator(fleet, "zoe", None) is kept
