"""What an operator who leaves has made is void by one row, however many tokens that are, unless it is kept."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from cryptography import x509
from sqlalchemy import func, select
from sqlalchemy.engine import Connection
from structlog.testing import capture_logs

from provisioning.api.revocations import ended_answer
from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.claims import ClaimOrder, ClaimService
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.operator_roles import OperatorRoleService
from provisioning.enrolment.token_retention import TokenRetention
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Pending, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.keys import PrivateKey, generate_key
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.revocation import departed_operators
from provisioning.revocation.departed_operators import Departed
from provisioning.revocation.service import RevocationService
from provisioning.store import audit, listed_devices, promises, token_inventory, tokens
from provisioning.store.approvals import IN_FORCE
from provisioning.store.groups import Group
from provisioning.store.listed_devices import ListedDevice
from provisioning.store.promises import Left
from provisioning.store.tables import tokens as token_rows
from provisioning.store.token_inventory import TokenFilter, TokenState
from provisioning.store.tokens import TokenGrant
from tests.support.fleet import Fleet
from tests.support.manufacturer import Manufacturer
from tests.support.many_certificates import make_portions_small, many_for_key
from tests.support.operators import operator
from tests.support.requests import NOON, csr_der
from tests.support.searched import noted
from tests.support.ways import enrol, group, refusal, register

COMPROMISED = RevocationReason.KEY_COMPROMISE
DAY = timedelta(days=1)
NOTHING_LEFT = Left(
    0, 0, 0, 0, 0, [], devices=0, groups=[], manufacturers_changed=[], unlisted=[], operators_gone=[], resumed=[]
)


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


async def audited(fleet: Fleet, subject: str) -> dict[str, object]:
    """Return what the audit log says of the last end of *subject*."""
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    facts: dict[str, object] = json.loads(
        [each.details for each in entries if each.subject == subject and each.action in {"revoked", "decommissioned"}][
            -1
        ]
    )
    return {name: value for name, value in facts.items() if name.startswith(("tokens", "approvals"))}


@pytest.mark.parametrize("reason", [COMPROMISED, RevocationReason.AFFILIATION_CHANGED])
async def test_of_every_operator_who_is_ended_with_others(fleet: Fleet, reason: RevocationReason) -> None:
    await operator(fleet, "boss")
    ended = ["anna", "bert"]
    for number, name in enumerate(ended):
        await operator(fleet, name)
        await made(fleet, name, f"meter-{number}", f"heater-{number}")
    await fleet.enrol("meter-9")
    outcome = await fleet.revocation.revoke_batch(["meter-9", *ended], [], reason, by="boss")
    assert {(await states(fleet))[f"meter-{number}"] for number in range(2)} == {TokenState.VOID}
    assert [(each.name, each.tokens_voided, each.left and each.left.tokens) for each in outcome.departed] == [
        ("anna", 2, 0), ("bert", 2, 0),
    ]  # fmt: skip
    assert [await audited(fleet, name) for name in (*ended, "meter-9")] == [{"tokens_voided": 2}] * 2 + [
        {"tokens_voided": 0}
    ]


async def test_of_who_has_another_good_certificate_only_if_the_key_is_compromised(fleet: Fleet) -> None:
    await operator(fleet, "boss")
    first, second = [f"{(await operator(fleet, 'carl')).serial_number:x}" for _ in range(2)]
    await made(fleet, "carl", "meter-1")
    superseded = RevocationReason.SUPERSEDED
    outcome = await fleet.revocation.revoke_serial(first, superseded, by="boss")
    assert ((await states(fleet))["meter-1"], list(outcome.departed)) == (TokenState.OPEN, [])
    outcome = await fleet.revocation.revoke_serial(second, superseded, by="boss", keep_tokens=True)
    assert [each.left and each.left.tokens for each in outcome.departed] == [1], (
        "he has none left, and it is told what he leaves"
    )
    assert ((await states(fleet))["meter-1"], await audited(fleet, "carl")) == (
        TokenState.OPEN, {"tokens_voided": 0, "tokens_kept": 1},
    )  # fmt: skip
    again = await fleet.revocation.revoke_batch([], [second], superseded, by="boss")
    assert (again.changed, (await states(fleet))["meter-1"]) == (True, TokenState.VOID)
    await operator(fleet, "carl")
    (late,) = await made(fleet, "carl", "meter-2")
    await fleet.revocation.revoke_serial(first, COMPROMISED, by="boss")
    assert (await states(fleet))["meter-2"] is TokenState.VOID
    await made(fleet, "carl", "meter-3")
    fleet.clock.advance(DAY)
    again = await fleet.revocation.revoke_serial(first, COMPROMISED, by="boss")
    assert (again.changed, await audited(fleet, "carl")) == (True, {"tokens_voided": 0}), "an expired one is void, too"
    entries = len(await fleet.database.read(lambda connection: audit.entries(connection, 0, 99)))
    assert not (await fleet.revocation.revoke_serial(first, COMPROMISED, by="boss")).changed
    assert len(await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))) == entries
    fleet.clock.advance(-DAY)
    with pytest.raises(Refused, match="TOKEN_VOID"):
        await fleet.enrolment.enrol(csr_der(names=["meter-2"]), late)
    assert (await states(fleet))["meter-3"] is TokenState.VOID


@pytest.mark.parametrize("many", [False, True])
async def test_what_whoever_dismisses_him_keeps_is_good_unless_the_key_is_compromised(fleet: Fleet, many: bool) -> None:
    await operator(fleet, "boss")
    await operator(fleet, "anna")
    (kept,) = await made(fleet, "anna", "meter-1")
    with pytest.raises(Refused, match="keep_tokens: what was made with a compromised key is never kept"):
        await fleet.revocation.revoke_batch(["anna"], [], COMPROMISED, by="boss", keep_tokens=True)
    if many:
        await fleet.revocation.decommission_batch(["anna"], by="boss", keep_tokens=True)
    else:
        await fleet.revocation.decommission("anna", by="boss", keep_tokens=True)
    assert await audited(fleet, "anna") == {"tokens_voided": 0, "tokens_kept": 1}
    await fleet.enrolment.enrol(csr_der(names=["meter-1"]), kept)


async def test_while_he_is_suspended_they_are_void(fleet: Fleet) -> None:
    """Whether somebody else has his key is what is looked into."""
    await operator(fleet, "boss")
    old, _ = [await operator(fleet, "anna", OperatorRole.ENROLLER) for _ in range(2)]
    (token,) = await made(fleet, "anna", "meter-1")
    await fleet.suspension.suspend_device("anna", by="boss")
    serial = f"{old.serial_number:x}"
    outcome = await fleet.revocation.revoke_serial(serial, RevocationReason.SUPERSEDED, by="boss")
    assert (outcome.changed, outcome.departed) == (True, ()), "the other one is on hold, and may be good tomorrow"
    told = "^TOKEN_VOID: this token's maker cannot promise it now: ask another operator for a new one$"
    with capture_logs() as logs, pytest.raises(Refused, match=told):  # A thief is not told that somebody has noticed.
        await fleet.enrolment.enrol(csr_der(names=["meter-1"]), token)
    assert [(each["maker"], each["why"]) for each in logs if "maker" in each] == [("anna", "is suspended")]
    assert (await states(fleet))["meter-1"] is TokenState.VOID
    assert await fleet.database.read(lambda connection: tokens.count_open(connection, fleet.clock())) == 0
    await fleet.suspension.resume_device("anna", by="boss")
    assert (await states(fleet))["meter-1"] is TokenState.OPEN
    await fleet.enrolment.enrol(csr_der(names=["meter-1"]), token)


async def test_what_else_he_leaves_behind_is_counted(fleet: Fleet) -> None:
    await operator(fleet, "boss")
    await operator(fleet, "anna")

    async def unchanged() -> None:
        pass

    claims = ClaimService(fleet.database, fleet.clock, unchanged)
    for name in ("batch-1", "batch-2"):
        await claims.create(ClaimOrder(name, "line", 5, DAY), by="anna")
    await claims.end("batch-2", by="boss")
    entries = [ListedDevice("meter-1", b"k" * 32), ListedDevice("meter-2", None)]
    await fleet.database.write(
        lambda connection: listed_devices.put(connection, "line", entries, by="anna", now=fleet.clock())
    )
    order = TokenOrder(["dora", "emil", "zoe"], None, Role.OPERATOR, operator_role=OperatorRole.ENROLLER)
    found = await fleet.token_service.create(order, by="anna")
    for each in found[:2]:  # Zoe's role ends with her token, as emil does by himself.
        name = str(each.grant.device)
        await fleet.enrolment.enrol(csr_der(names=[name]), TokenCredential(name, each.token))
    await fleet.revocation.decommission("emil", by="boss")
    (departed,) = (await fleet.revocation.decommission("anna", by="boss")).departed
    left = replace(NOTHING_LEFT, claims=1, listed=1, operators=["dora"], operators_gone=["emil"])
    assert departed == Departed("anna", 1, 0, left)

    # Whoever has the key may have made the claim: it ends, even if the operator has gone before.
    await claims.create(ClaimOrder("batch-3", "line", 5, DAY), by="boss")
    reported = await fleet.revocation.revoke_device("anna", COMPROMISED, by="boss")
    (departed,) = reported.departed
    rest = replace(left, claims=0, listed=0)
    ended = Departed("anna", 0, 0, rest, claims_ended=1, listed_ended={"line": 2}, roles_ended=["emil", "zoe"])
    assert departed == ended
    assert [(each.name, each.ended_at is None) for each in await claims.page(limit=9, after=None)] == [
        ("batch-1", False), ("batch-2", False), ("batch-3", True),
    ]  # fmt: skip
    told = await fleet.database.read(lambda connection: audit.about(connection, "", 99))
    (entry, _, _, unlisted, claim, *_) = told[::-1]
    assert json.loads(entry.details)["claims_ended"] == ["batch-1"]
    assert (claim.action, claim.subject) == (audit.Action.CLAIM_ENDED, "batch-1")
    assert (unlisted.action, unlisted.subject) == (audit.Action.LIST_ENTRIES_ENDED, "line")
    again = await fleet.revocation.revoke_batch(["anna"], [], COMPROMISED, by="boss")
    assert (again.changed, again.departed[0].claims_ended) == (False, 0)


async def test_a_manufacturer_whom_a_thief_may_have_registered_lets_nobody_in_until_another_admin_does(
    fleet: Fleet,
) -> None:
    """With a CA of his own a thief lets in whom he likes, for ever."""
    await operator(fleet, "boss")
    await operator(fleet, "anna")
    await group(fleet, "manufacturer")
    acme, zenith = Manufacturer(begin=NOON), Manufacturer(begin=NOON)
    await register(fleet, acme, by="anna")
    await register(fleet, zenith, "zenith", "z-", by="boss")
    await enrol(fleet, "SN17", certificate=acme.idevid("SN17")[0])
    (departed,) = (await fleet.revocation.decommission("anna", by="boss")).departed
    left = replace(NOTHING_LEFT, manufacturers=1, devices=1)
    assert departed == Departed("anna", 0, 0, left), "for any other reason than a theft it is told"
    await enrol(fleet, "SN18", certificate=acme.idevid("SN18")[0])

    told = list[str]()

    async def tls() -> None:
        told.append("tls")

    revocation = RevocationService(fleet.database, fleet.clock, (), trust_changed=tls)
    outcome = await revocation.revoke_batch(["anna"], [], COMPROMISED, by="boss")
    assert told == ["tls"]
    left = replace(left, manufacturers=0, devices=2)
    assert (outcome.changed, outcome.departed) == (
        True, [Departed("anna", 0, 0, left, manufacturers_ended=["acme"])],
    )  # fmt: skip
    (item,) = ended_answer(outcome)["operators"]
    assert (item["manufacturers_ended"], item["devices_left"], item["operators_made"]) == (["acme"], 2, [])
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    (of_anna, *_) = [each for each in entries if each.subject == "anna"][::-1]
    (of_acme,) = [each for each in entries if each.action == audit.Action.MANUFACTURER_ENDED]
    assert (json.loads(of_anna.details)["manufacturers_ended"], of_acme.subject) == (["acme"], "acme")
    mine = acme.idevid("SN19")[0]
    assert await refusal(fleet, "SN19", certificate=mine) is Code.TOKEN_MISSING
    await enrol(fleet, "z-SN19", certificate=zenith.idevid("SN19")[0])

    await register(fleet, acme, by="boss")
    await enrol(fleet, "SN19", certificate=mine)
    again = await fleet.revocation.revoke_device("anna", COMPROMISED, by="boss")
    assert (again.changed, again.departed[0].manufacturers_ended) == (False, ())


@pytest.mark.parametrize("way", ["one", "many", "in portions"])
async def test_a_key_reported_again_ends_only_claims_that_it_can_have_made(
    fleet: Fleet, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who repeats the command, or gives a file of serial numbers again, ends nothing that the operator made since."""
    if way == "in portions":
        make_portions_small(monkeypatch)
    await operator(fleet, "boss")
    key = generate_key()
    every = await many_for_key(fleet, key, "anna", 2, Role.OPERATOR)
    told = list[str]()

    async def tls() -> None:
        told.append("tls")

    claims = ClaimService(fleet.database, fleet.clock, tls)
    revocation = RevocationService(fleet.database, fleet.clock, (), trust_changed=tls)

    async def create(name: str) -> None:
        fleet.clock.advance(DAY / 24)
        await claims.create(ClaimOrder(name, "line", 5, 9 * DAY), by="anna")
        fleet.clock.advance(DAY / 24)

    async def report(certificate: x509.Certificate) -> tuple[bool, int, list[str]]:
        """Return whether it changed something, how many claims ended, and which go on."""
        told.clear()
        serial = f"{certificate.serial_number:x}"
        outcome = await (
            revocation.revoke_batch([], [serial], COMPROMISED, by="boss")
            if way == "many"
            else revocation.revoke_serial(serial, COMPROMISED, by="boss")
        )
        (departed,) = outcome.departed
        assert len(told) == (departed.claims_ended > 0), "TLS lets who has one through no more"
        going_on = [each.name for each in await claims.page(limit=9, after=None) if each.ended_at is None]
        return outcome.changed, departed.claims_ended, going_on

    await fleet.revocation.revoke_serial(f"{every[0].serial_number:x}", RevocationReason.SUPERSEDED, by="boss")
    await create("before")
    another = await operator(fleet, "anna")
    await create("beside")
    assert await report(every[-1]) == (True, 2, []), "it may have made both"
    await create("since")
    for each in every:
        assert await report(each) == (False, 0, ["since"])
    await fleet.database.write(
        lambda connection: connection.exec_driver_sql("UPDATE claims SET ended_at = NULL WHERE name = 'before'")
    )
    assert await report(every[0]) == (True, 1, ["since"]), "as it was reported to a service that ended no claims"
    assert await report(another) == (True, 1, [])
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    told_of = [each.subject for each in entries if each.action == audit.Action.CLAIM_ENDED]
    assert told_of == ["before", "beside", "before", "since"]


@pytest.mark.parametrize("many", [False, True])
async def test_that_it_cannot_be_counted_keeps_nobody_in(fleet: Fleet, many: bool) -> None:
    await operator(fleet, "boss")
    serial = f"{(await operator(fleet, 'anna')).serial_number:x}"
    await made(fleet, "anna", "meter-1")
    await fleet.database.write(
        lambda connection: connection.exec_driver_sql("ALTER TABLE listed_devices RENAME TO locked_away")
    )
    revocation, reason = fleet.revocation, RevocationReason.SUPERSEDED
    outcome = await (
        revocation.revoke_batch(["anna"], [], reason, by="boss")
        if many
        else revocation.revoke_serial(serial, reason, by="boss")
    )
    assert (outcome.changed, outcome.departed) == (True, [Departed("anna", 1, 0, None)])
    assert ended_answer(outcome)["operators"] == [
        {
            "name": "anna",
            "tokens_voided": 1,
            "approvals_undone": 0,
            "claims_ended": 0,
            "trials_ended": 0,
            "manufacturers_ended": [],
            "listed_ended": 0,
            "lists_ended": [],
            "roles_ended": [],
        }
    ]
    assert (await states(fleet))["meter-1"] is TokenState.VOID


async def test_what_others_have_made_is_not_looked_at(fleet: Fleet) -> None:
    """With a million tokens nobody could enrol meanwhile, nor be shut out."""
    await operator(fleet, "boss")
    await operator(fleet, "anna")
    grant, now = TokenGrant(None, "north", Role.DEVICE), fleet.clock()
    others = [(number.to_bytes(32), grant) for number in range(2000)]
    await fleet.database.write(
        lambda connection: tokens.add(connection, others, created_by="boss", now=now, expires_at=now + DAY)
    )
    await fleet.database.write(lambda connection: connection.exec_driver_sql("ANALYZE"))

    def end(connection: Connection) -> Counter[str]:
        return tokens.void_made_by(connection, ["anna"], fleet.clock())

    def plan(connection: Connection) -> str:
        explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
        return str(connection.exec_driver_sql(f"{explain} {statement}", parameters).all())

    asked, _ = await noted(fleet.database.write(end))
    ((statement, parameters),) = [each for each in asked if "FROM tokens" in each[0]]
    assert "ix_tokens_created_by" in await fleet.database.read(plan)


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
    "decommission": lambda fleet, _: fleet.revocation.decommission("boss", by="anna"),
    "demote": lambda fleet, _: OperatorRoleService(fleet.database, fleet.clock).grant(
        "boss", OperatorRole.AUDITOR, by="anna"
    ),
}


@pytest.mark.parametrize("end", ENDS)
async def test_what_he_has_approved_and_nobody_has_had_is_to_be_decided_again(
    fleet: Fleet, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a thief of his key keeps a request back that he has approved, until the key is of no use to him any more.

    The event loop serves others meanwhile: he may have made a million tokens.
    """
    where = list[int]()

    def noted_take_back(*given: Any) -> Any:
        where.append(threading.get_ident())
        return take_back(*given)

    take_back = promises.take_back
    monkeypatch.setattr(promises, "take_back", noted_take_back)
    monkeypatch.setattr(departed_operators, "MANY", -1)
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
    assert len(where) == 1
    assert where[0] != threading.get_ident()
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
    details = [json.loads(each.details) for each in entries if each.subject == "boss"][-1]
    assert details["approvals_undone"] == 1
    await service.decide(numbers["held"], approve=True, by="anna")
    await fleet.enrolment.enrol(csr_der(keys["held"], names=["held"]), None, "line")


async def test_what_he_has_approved_stays_approved_if_it_is_kept(fleet: Fleet) -> None:
    await operator(fleet, "anna")
    await operator(fleet, "boss")
    await fleet.groups.create(Group("line", ways=parse_ways(["approval"])), by="admin")
    key = generate_key()
    number = await waiting(fleet, "meter-1", key)
    await ApprovalService(fleet.database, fleet.clock).decide(number, approve=True, by="boss")
    kept = await fleet.revocation.revoke_device("boss", RevocationReason.SUPERSEDED, by="anna", keep_tokens=True)
    assert await audited(fleet, "boss") == {"tokens_voided": 0, "approvals_kept": 1}
    look = partial(promises.left_of, names=["boss"], now=fleet.clock() + IN_FORCE)
    lapsed = (await fleet.database.read(look))["boss"]
    assert [each.left and each.left.approvals for each in kept.departed] == [1]
    assert lapsed.approvals == 0, "it counts no longer than a token"
    await fleet.enrolment.enrol(csr_der(key, names=["meter-1"]), None, "line")
