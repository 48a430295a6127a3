"""What an operator may ask for: every bound of an order for tokens or for a claim, from both sides."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from sqlalchemy.engine import Connection

from provisioning.ca.name_policy import MAXIMUM_NAMES
from provisioning.ca.profile import MAXIMUM_LIFE
from provisioning.enrolment import tokens as making
from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.claims import MAXIMUM_DEVICES, ClaimOrder, ClaimService
from provisioning.enrolment.claims import MAXIMUM_LIFE as LONGEST_CLAIM
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.tokens import MAXIMUM_BATCH, MAXIMUM_TTL, TokenOrder
from provisioning.errors import Code, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.role import Role
from provisioning.store import audit, tokens
from provisioning.store.groups import Group
from provisioning.store.token_inventory import KnownToken, TokenState
from tests.support.fleet import Fleet
from tests.support.requests import NOON, csr_der

SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


async def refused(created: Any) -> str | None:
    """Return why nothing was created; None: something was."""
    try:
        await created
    except Refused as refusal:
        return refusal.detail if refusal.code is Code.INVALID_REQUEST else f"for another reason: {refusal}"
    return None


async def test_an_order_for_tokens_is_judged_whole(fleet: Fleet) -> None:
    names = [f"meter-{number}" for number in range(MAXIMUM_BATCH + 1)]
    addresses = [f"10.0.0.{number}" for number in range(MAXIMUM_NAMES)]
    broker = {"devices": ["broker-1"], "role": Role.BROKER}
    await fleet.groups.create(Group("closed", ways=()), by="anna")
    for order, words in (
        ({"ttl": SECOND}, None),
        ({"ttl": MAXIMUM_TTL}, None),
        ({"ttl": timedelta()}, "ttl_seconds must be 1 to"),
        ({"ttl": MAXIMUM_TTL + SECOND}, "ttl_seconds must be 1 to 7776000 (90d), and is 7776001"),
        ({"lifetime": SECOND}, None),
        ({"lifetime": MAXIMUM_LIFE}, None),
        ({"lifetime": timedelta()}, "lifetime_seconds must be 1 to"),
        ({"lifetime": MAXIMUM_LIFE + SECOND}, "lifetime_seconds must be 1 to"),
        ({"devices": [], "group": "north", "count": 2}, None),
        ({"devices": [], "group": "north", "count": 0}, "a batch has 1 to"),
        ({"devices": [], "group": "north", "count": MAXIMUM_BATCH + 1}, "a batch has 1 to"),
        ({"devices": [], "group": "closed", "count": MAXIMUM_BATCH}, "for another reason: WAY_REFUSED"),
        ({"devices": names}, "a batch has 1 to"),
        ({"devices": ["m-1", "m-2"], "count": 2}, "count is for group tokens"),
        ({"devices": ["m-1", "m-1"]}, "devices names a device twice"),
        ({"devices": []}, "give device, devices or group"),
        ({"devices": ["m/1"]}, "device 'm/1'"),
        ({"group": "north+"}, "group 'north+'"),
        ({"devices": ["anna"], "role": Role.OPERATOR, "operator_role": OperatorRole.ADMIN}, None),
        ({"operator_role": OperatorRole.ADMIN}, "operator_role is for tokens with role operator"),
        (
            {"devices": [], "group": "staff", "role": Role.OPERATOR, "operator_role": OperatorRole.ADMIN},
            "operator_role is for tokens with role operator, each for one by name",
        ),
        ({"dns_names": ["a.example"]}, "dns_names and ip_addresses are for role broker, not device"),
        ({"ip_addresses": ["10.0.0.1"]}, "dns_names and ip_addresses are for role broker, not device"),
        (broker | {"dns_names": ["a.example"], "ip_addresses": ["10.0.0.1"]}, None),
        (broker | {"dns_names": ["a..example"]}, "dns_names: "),
        (broker | {"ip_addresses": ["10.0.0.1.1"]}, "ip_addresses: "),
        (broker | {"ip_addresses": addresses}, None),
        (broker | {"ip_addresses": addresses, "dns_names": ["a.example"]}, "DNS names and IP addresses at most"),
    ):
        values: dict[str, Any] = {"devices": ["meter-1"]} | order
        answer = await refused(fleet.token_service.create(TokenOrder(**values), by="anna"))
        assert answer is None if words is None else words in str(answer), (order, answer)


async def test_a_device_is_always_of_a_group_and_others_of_the_one_that_is_named(fleet: Fleet) -> None:
    for role, group, expected in (
        (Role.DEVICE, None, "default"),
        (Role.DEVICE, "north", "north"),
        (Role.OPERATOR, None, None),
        (Role.SERVICE, "north", "north"),
    ):
        (issued,) = await fleet.token_service.create(TokenOrder([f"{role}-{group}"], group, role), by="anna")
        assert (issued.grant.role, issued.grant.group) == (role, expected)
        assert issued.expires_at == fleet.clock() + timedelta(hours=1)


async def test_a_token_for_a_device_that_is_here_is_for_its_own_role_and_group(fleet: Fleet) -> None:
    """Made for another one it was worth nothing, as the device heard (NAME_TAKEN) long after the operator had gone."""
    await fleet.enrol("meter-1")  # Of group north.
    create = fleet.token_service.create
    back, new = await create(TokenOrder(["meter-1", "meter-2"]), by="anna")
    assert [each.grant.group for each in (back, new)] == ["north", "default"]
    (entry,) = await fleet.database.read(lambda connection: audit.about(connection, "meter-2", 9))
    assert json.loads(entry.details)["group"] == "default, north"
    await fleet.enrolment.enrol(csr_der(names=["meter-1"]), TokenCredential("meter-1", back.token))
    for order in (
        TokenOrder(["meter-2", "meter-1"], "south"),
        TokenOrder(["meter-1"], role=Role.SERVICE),
        TokenOrder(["meter-1"], "north", Role.BROKER),
    ):
        with pytest.raises(Refused, match=r"NAME_TAKEN: .*meter-1 keeps the role device of group north; ask"):
            await create(order, by="anna")
    await fleet.revocation.decommission("meter-1", by="anna")
    with pytest.raises(Refused, match="DEVICE_DECOMMISSIONED: a token could not be used: meter-1 was decommissioned"):
        await create(TokenOrder(["meter-1"], "north"), by="anna")


async def test_a_token_is_voided_once_by_who_may_and_one_that_was_spent_never(fleet: Fleet) -> None:
    service = fleet.token_service
    (void, spent) = await service.create(TokenOrder(["meter-1", "meter-2"], "north"), by="anna")
    seen: list[KnownToken] = []

    def deny(token: KnownToken) -> None:
        seen.append(token)
        raise Refused(Code.OPERATOR_ROLE, "not you")

    with pytest.raises(Refused, match="not you"):
        await service.void(void.number, deny, by="eve")
    assert [(each.id, each.state) for each in seen] == [(void.number, TokenState.OPEN)]
    ended = await service.void(void.number, lambda _: None, by="bert")
    assert (ended.id, ended.state, ended.device) == (void.number, TokenState.VOID, "meter-1")
    assert await service.void(void.number, lambda _: None, by="carl") == ended
    with pytest.raises(Refused, match="TOKEN_VOID"):
        await fleet.enrolment.enrol(csr_der(names=["meter-1"]), TokenCredential("meter-1", void.token))
    certificate = await fleet.enrolment.enrol(csr_der(names=["meter-2"]), TokenCredential("meter-2", spent.token))
    with pytest.raises(Refused, match=f"TOKEN_SPENT: .* certificate {certificate.serial_number:x}: revoke that"):
        await service.void(spent.number, lambda _: None, by="bert")
    with pytest.raises(Refused, match="TOKEN_NUMBER_UNKNOWN"):
        await service.void(9999, lambda _: None, by="bert")


async def test_what_becomes_of_tokens_is_in_the_audit_log_once(fleet: Fleet) -> None:
    fleet.clock.advance(timedelta(microseconds=1))
    service = fleet.token_service
    (one,) = await service.create(TokenOrder(["meter-1"], "north"), by="anna")
    assert one.expires_at == NOON + timedelta(hours=1), "to the second"
    await service.create(TokenOrder(["broker-1", "broker-2"], role=Role.BROKER), by="anna")
    (of_group,) = await service.create(TokenOrder(group="south"), by="bert")
    (late,) = await service.create(TokenOrder(["meter-9"], "north", ttl=SECOND), by="bert")
    fleet.clock.advance(SECOND)
    for number in (one.number, of_group.number, of_group.number, late.number):
        await service.void(number, lambda _: None, by="carl")
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    made = {"count": 1, "role": "device", "group": "north", "expires_at": "2027-03-01T13:00:00Z"}
    assert [(str(each.action), each.actor, each.subject, json.loads(each.details)) for each in entries] == [
        ("tokens created", "anna", "meter-1", made | {"devices": ["meter-1"]}),
        (
            "tokens created",
            "anna",
            "2 tokens",
            made | {"count": 2, "role": "broker", "group": None, "devices": ["broker-1", "broker-2"]},
        ),
        ("tokens created", "bert", "1 token", made | {"group": "south", "devices": []}),
        (
            "tokens created",
            "bert",
            "meter-9",
            made | {"expires_at": "2027-03-01T12:00:01Z", "devices": ["meter-9"]},
        ),
        ("token voided", "carl", "meter-1", {"token": one.number, "role": "device", "group": "north"}),
        (
            "token voided",
            "carl",
            f"token {of_group.number}",
            {"token": of_group.number, "role": "device", "group": "south"},
        ),
    ]


async def test_a_closed_group_has_no_tokens_for_devices_and_what_is_no_token_is_not_looked_for(fleet: Fleet) -> None:
    await fleet.groups.create(Group("shut", ways=()), by="anna")
    await fleet.token_service.create(TokenOrder(["broker-1"], "shut", Role.BROKER), by="anna")
    await fleet.groups.create(Group("lab", ways=parse_ways(["approval", "claim+listed"])), by="anna")
    for name, by, kept in (
        ("shut", "no way: it is closed", ""),
        ("lab", "approval or claim+listed", " --way approval --way claim+listed"),
    ):
        with pytest.raises(Refused) as caught:
            await fleet.token_service.create(TokenOrder(["meter-1"], name), by="anna")
        assert caught.value.code is Code.WAY_REFUSED
        assert f"group {name} admits devices by {by}; " in caught.value.detail
        assert f"(fleet-provisioning group set {name}{kept} --way token)" in caught.value.detail
    with pytest.raises(Refused, match="TOKEN_UNKNOWN: the password is not an enrolment token"):
        await fleet.enrolment.enrol(csr_der(names=["meter-1"]), TokenCredential("meter-1", "secret"))


async def test_an_order_for_a_claim_is_judged_whole(fleet: Fleet) -> None:
    told: list[str] = []

    async def changed() -> None:
        told.append("trust")

    service = ClaimService(fleet.database, fleet.clock, changed)
    orders: tuple[tuple[dict[str, Any], str | None], ...] = (
        ({}, None),
        ({"maximum_devices": MAXIMUM_DEVICES, "life": LONGEST_CLAIM, "trial": timedelta(days=7)}, None),
        ({"life": MINUTE, "trial": timedelta(minutes=5)}, None),
        ({"maximum_devices": 0}, "maximum_devices must be 1 to 1000000"),
        ({"maximum_devices": MAXIMUM_DEVICES + 1}, "maximum_devices must be 1 to 1000000"),
        ({"life": MINUTE - SECOND}, "life_seconds must be 60 (1m) to 31622400 (366d), and is"),
        ({"life": LONGEST_CLAIM + SECOND}, "life_seconds must be 60 (1m) to 31622400 (366d), and is"),
        (
            {"trial": timedelta(minutes=5) - SECOND},
            "activation_seconds must be 300 (5m) to 604800 (7d), and is",
        ),
        ({"trial": timedelta(days=7) + SECOND}, "activation_seconds must be 300 (5m) to 604800 (7d), and is"),
        ({"name": "a/b"}, "name 'a/b'"),
        ({"group": "#"}, "group '#'"),
    )
    for number, (order, words) in enumerate(orders):
        values: dict[str, Any] = {"name": f"batch-{number}", "group": "line", "maximum_devices": 1, "life": MINUTE}
        answer = await refused(service.create(ClaimOrder(**(values | order)), by="anna"))
        assert answer == words if words is None else words in str(answer), (order, answer)
    assert told == ["trust"] * 3, "TLS hears of every new one, and of nothing else"
    made = x509.load_der_x509_certificate((await service.find("batch-0")).der)
    extensions = {each.oid: (each.value, each.critical) for each in made.extensions}
    assert extensions[x509.BasicConstraints.oid] == (x509.BasicConstraints(ca=False, path_length=None), True)
    assert (extensions[x509.KeyUsage.oid][0].digital_signature, extensions[x509.KeyUsage.oid][1]) == (True, True)
    assert extensions[x509.ExtendedKeyUsage.oid][0] == x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    assert (made.not_valid_before_utc, made.not_valid_after_utc) == (fleet.clock() - MINUTE, fleet.clock() + MINUTE)
    assert not any(extensions[each.oid][1] for each in (x509.ExtendedKeyUsage, x509.SubjectKeyIdentifier))
    assert (await service.end("batch-0", by="anna")).ended_at == fleet.clock()
    assert len(told) == 4
    with pytest.raises(Refused, match="NAME_EXISTS: a claim batch-1 exists already"):
        await service.create(ClaimOrder("batch-1", "line", 1, MINUTE), by="anna")
    for unknown in (service.find("batch-9"), service.end("batch-9", by="anna")):
        with pytest.raises(Refused, match="CLAIM_UNKNOWN: no claim is called 'batch-9'"):
            await unknown
    assert [each.name for each in await service.page(limit=1, after="batch-0")] == ["batch-1"]


async def test_many_tokens_are_made_in_portions_between_which_others_write(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand in one transaction kept others waiting for seconds."""
    monkeypatch.setattr(making, "PORTION", 2)
    between: list[asyncio.Task[None]] = []
    add, loop = tokens.add, asyncio.get_running_loop()

    def noted(connection: Connection, grants: Any, **facts: Any) -> list[int]:
        loop.call_soon_threadsafe(lambda: between.append(asyncio.ensure_future(fleet.database.probe())))
        return add(connection, grants, **facts)

    monkeypatch.setattr(tokens, "add", noted)
    names = [f"meter-{number}" for number in range(5)]
    made = await fleet.token_service.create(TokenOrder(devices=names, group="north"), by="anna")
    await asyncio.gather(*between)
    assert len(between) == 3
    assert [each.grant.device for each in made] == names
    assert len({each.number for each in made}) == 5
    entries = await fleet.database.read(lambda connection: audit.about(connection, "anna", 9))
    assert [json.loads(each.details)["devices"] for each in entries] == [names[:2], names[2:4], names[4:]]
    for each in made:
        await fleet.enrolment.enrol(
            csr_der(names=[str(each.grant.device)]), TokenCredential(str(each.grant.device), each.token)
        )


async def test_of_many_orders_one_waits_for_the_store_at_a_time(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight of an enroller's connections had each enrolment wait for eight portions."""
    monkeypatch.setattr(making, "PORTION", 1)
    write, at_once = fleet.database.write, [0]

    async def counted(work: Any) -> Any:
        at_once.append(at_once[-1] + 1)
        try:
            return await write(work)
        finally:
            at_once.append(at_once[-1] - 1)

    monkeypatch.setattr(fleet.database, "write", counted)
    orders = [fleet.token_service.create(TokenOrder(group="north", count=2), by="anna") for _ in range(4)]
    assert [len(made) for made in await asyncio.gather(*orders)] == [2] * 4
    assert at_once == [0] + [1, 0] * 8


async def test_where_a_portion_fails_those_before_it_are_void(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """All or none: nobody was told of any."""
    monkeypatch.setattr(making, "PORTION", 2)
    add = tokens.add
    calls = 0

    def failing(connection: Connection, grants: Any, **facts: Any) -> list[int]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Refused(Code.OPERATOR_ROLE, "he may not any more")
        return add(connection, grants, **facts)

    monkeypatch.setattr(tokens, "add", failing)
    with pytest.raises(Refused, match="he may not any more"):
        await fleet.token_service.create(TokenOrder(group="north", count=6), by="anna")
    assert await fleet.database.read(lambda connection: tokens.count_open(connection, fleet.clock())) == 0
    entries = await fleet.database.read(lambda connection: audit.about(connection, "anna", 9))
    assert [(each.action, each.subject) for each in entries] == [
        ("tokens created", "2 tokens"),
        ("tokens created", "2 tokens"),
        ("token voided", "2 tokens"),
        ("token voided", "2 tokens"),
    ]
    calls = 0
    await fleet.enrol("meter-5")
    await fleet.revocation.decommission("meter-5", by="bert")
    with pytest.raises(Refused, match="DEVICE_DECOMMISSIONED"):
        await fleet.token_service.create(TokenOrder(devices=[f"meter-{n}" for n in range(6)]), by="anna")
    assert calls == 1, "what can be refused is refused before any is made; the one is the enrolment's"
