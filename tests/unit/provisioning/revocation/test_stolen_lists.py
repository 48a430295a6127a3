"""What a thief with an operator's key has listed ends with the key; what he has changed otherwise is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from alembic import command
from sqlalchemy import select
from sqlalchemy.engine import Connection

from provisioning.api.revocations import ended_answer
from provisioning.enrolment.device_list import DeviceListService
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.left_behind import LeftBehindService
from provisioning.enrolment.manufacturers import ManufacturerChange, ManufacturerService
from provisioning.enrolment.operator_roles import OperatorRoleService
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Refused
from provisioning.operator_role import OperatorRole
from provisioning.pki.keys import PrivateKey, generate_key, spki_fingerprint
from provisioning.pki.revocation_reason import RevocationReason
from provisioning.pki.role import Role
from provisioning.program.shielded import Lasting
from provisioning.revocation.others_for_key import OtherForKey, others_for_keys
from provisioning.store import (
    audit,
    certificates,
    listed_devices,
    rare_changes,
    revision,
    schema,
    unfinished_key_ends,
)
from provisioning.store.audit import Action
from provisioning.store.certificates_of_key import key_of
from provisioning.store.listed_devices import ListedDevice, ListEntry
from provisioning.store.manufacturers import LapsedLists
from provisioning.store.promises import Left
from provisioning.store.tables import listed_devices as list_rows
from tests.support.fleet import Fleet, successor_csr
from tests.support.manufacturer import Manufacturer
from tests.support.many_certificates import many_for_key, serials_of
from tests.support.operators import operator
from tests.support.requests import NOON
from tests.support.searched import noted
from tests.support.ways import enrol, group, nothing, refusal, register

COMPROMISED = RevocationReason.KEY_COMPROMISE
ENDED = Action.LIST_ENTRIES_ENDED
HOUR = timedelta(hours=1)
KEYS = [generate_key() for _ in range(3)]


async def put(fleet: Fleet, by: str, *names: str, key: PrivateKey = KEYS[0], group_name: str = "line") -> None:
    digest = spki_fingerprint(key.public_key()).hex()
    await DeviceListService(fleet.database, fleet.clock).add(group_name, [(name, digest) for name in names], by=by)
    fleet.clock.advance(HOUR)


async def entries(fleet: Fleet) -> dict[str, ListEntry]:
    found = await DeviceListService(fleet.database, fleet.clock).page("line", limit=99, after=None)
    return {each.device.name: each for each in found}


async def in_force(fleet: Fleet) -> dict[str, str]:
    """Return whose word each entry of the list is that lets its device in."""
    return {name: each.by for name, each in (await entries(fleet)).items() if each.ended_at is None}


async def logged(fleet: Fleet, action: Action) -> list[tuple[str, str, dict[str, object]]]:
    found = await fleet.database.read(lambda connection: audit.entries(connection, 0, 999))
    return [(each.actor, each.subject, json.loads(each.details)) for each in found if each.action == action]


async def of_anna(fleet: Fleet, name: str = "anna") -> Left:
    return (await LeftBehindService(fleet.database, fleet.clock).of(name)).left


@pytest.mark.parametrize("many", [False, True])
async def test_what_only_the_thief_has_listed_lets_nobody_in_until_another_lists_it_again(
    fleet: Fleet, many: bool
) -> None:
    for name in ("boss", "anna", "bert"):
        await operator(fleet, name, OperatorRole.ADMIN)
    await group(fleet, "listed")
    await put(fleet, "bert", "before", "replaced")
    await put(fleet, "anna", "before", "after")
    await put(fleet, "anna", "his", key=KEYS[2])
    await put(fleet, "anna", "replaced", "waits", key=KEYS[1])
    await put(fleet, "anna", "elsewhere", group_name="other")
    await put(fleet, "bert", "after", "good")
    assert (await of_anna(fleet)).listed == 6, "of her own word"
    await enrol(fleet, "his", key=KEYS[2], label="line")
    outcome = await (
        fleet.revocation.revoke_batch(["anna"], [], COMPROMISED, by="boss")
        if many
        else fleet.revocation.revoke_device("anna", COMPROMISED, by="boss")
    )
    (item,) = ended_answer(outcome)["operators"]
    assert (item["listed_ended"], item["lists_ended"], item["listed_left"]) == (4, ["line", "other"], 0)
    assert item["devices_left"] == 1
    assert await in_force(fleet) == {"before": "bert", "after": "bert", "good": "bert"}
    ended = [(each, facts["count"], facts["created_by"]) for _, each, facts in await logged(fleet, ENDED)]
    assert ended == [("line", 3, "anna"), ("other", 1, "anna")]
    (facts,) = [facts for _, subject, facts in await logged(fleet, Action.REVOKED) if subject == "anna"]
    assert facts["listed_ended"] == {"line": 3, "other": 1}

    assert await refusal(fleet, "waits", key=KEYS[1], label="line") is Code.NOT_LISTED
    assert await refusal(fleet, "replaced", key=KEYS[1], label="line") is Code.NOT_LISTED
    assert await refusal(fleet, "replaced", key=KEYS[0], label="line") is Code.NOT_LISTED, "nobody lists that key now"
    await enrol(fleet, "before", key=KEYS[0], label="line")
    await put(fleet, "boss", "replaced", key=KEYS[1])
    assert (await in_force(fleet))["replaced"] == "boss"
    assert (await entries(fleet))["replaced"].also_by is None
    assert (await logged(fleet, Action.DEVICES_LISTED))[-1][-1]["new"] == 1, "it is told as added: it was worth nothing"
    await enrol(fleet, "replaced", key=KEYS[1], label="line")
    again = await fleet.revocation.revoke_device("anna", COMPROMISED, by="boss")
    assert (again.changed, again.departed[0].listed_ended) == (False, {})


async def test_a_thief_takes_nobody_s_word_away_and_an_entry_stays_while_one_who_gave_it_is_trusted(
    fleet: Fleet,
) -> None:
    for name in ("boss", "anna", "bert", "carl"):
        await operator(fleet, name)
    for by in ("bert", "anna", "carl", "anna"):
        await put(fleet, by, "meter-1")
    (entry,) = (await entries(fleet)).values()
    assert (entry.added_by, entry.also_by) == ("anna", "bert")
    told = [facts["devices"] for _, _, facts in await logged(fleet, Action.DEVICES_LISTED)]
    assert [bool(each) for each in told] == [True, True, True, True]
    await put(fleet, "anna", "meter-1")
    assert (await logged(fleet, Action.DEVICES_LISTED))[-1][-1]["devices"] == [], "she says nothing new"
    await fleet.revocation.revoke_batch(["anna"], [], COMPROMISED, by="boss")
    assert await in_force(fleet) == {"meter-1": "bert"}
    await fleet.database.write(lambda connection: connection.exec_driver_sql("DELETE FROM ended_listers"))
    again = await fleet.revocation.revoke_batch(["anna"], [], COMPROMISED, by="boss")
    last = (await logged(fleet, Action.REVOKED))[-1]
    assert (again.changed, last[1], last[2]["listed_ended"]) == (True, "anna", {}), "her word counts no more"
    outcome = await fleet.revocation.revoke_batch(["bert"], [], COMPROMISED, by="boss")
    assert outcome.departed[0].listed_ended == {"line": 1}
    assert await in_force(fleet) == {}
    assert await of_anna(fleet, "bert") == await of_anna(fleet)


async def test_what_ends_with_nobody_s_key_ends_by_a_command(fleet: Fleet) -> None:
    for name in ("boss", "anna"):
        await operator(fleet, name)
    lists = DeviceListService(fleet.database, fleet.clock)
    await lists.add("line", [("named", None)], by="anna")
    await put(fleet, "anna", "meter-1")
    outcome = await fleet.revocation.decommission("anna", by="boss")
    assert ([each.listed_ended for each in outcome.departed], len(await in_force(fleet))) == ([{}], 2)
    assert await lists.end_of("anna", by="boss") == {"line": 2}
    assert (await lists.end_of("anna", by="boss"), await in_force(fleet)) == ({}, {})
    await operator(fleet, "bert")
    await put(fleet, "bert", "meter-1")
    await put(fleet, "boss", "meter-1")
    assert (await lists.end_of("bert", by="boss"), await in_force(fleet)) == ({}, {"meter-1": "boss"})
    ended = [(by, each, facts["count"]) for by, each, facts in await logged(fleet, ENDED)]
    assert ended == [("boss", "line", 2), ("boss", "line", 0)], "his word does not count any more"
    with pytest.raises(Refused, match="DEVICE_UNKNOWN: no operator is called 'meter-1'"):
        await lists.end_of("meter-1", by="boss")


async def test_a_key_that_is_reported_again_ends_what_it_can_have_listed(fleet: Fleet) -> None:
    await operator(fleet, "boss")
    stolen = f"{(await operator(fleet, 'anna')).serial_number:x}"
    fleet.clock.advance(HOUR)
    await put(fleet, "anna", "by-the-thief")
    await fleet.revocation.revoke_serial(stolen, COMPROMISED, by="boss")
    fleet.clock.advance(HOUR)
    await operator(fleet, "anna")
    await put(fleet, "anna", "by-anna")
    again = await fleet.revocation.revoke_serial(stolen, COMPROMISED, by="boss")
    assert (again.changed, await in_force(fleet)) == (False, {"by-anna": "anna"})
    # As it was reported to a version that ended no entries.
    await fleet.database.write(lambda connection: connection.exec_driver_sql("DELETE FROM ended_listers"))
    again = await fleet.revocation.revoke_serial(stolen, COMPROMISED, by="boss")
    assert (again.departed[0].listed_ended, await in_force(fleet)) == ({"line": 1}, {"by-anna": "anna"})


async def test_an_entry_by_a_clock_that_was_ahead_ends_and_so_does_one_of_very_many(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provisioning.revocation.departed_operators.MANY", 0)
    await operator(fleet, "boss")
    await operator(fleet, "anna")
    fleet.clock.advance(HOUR)
    await put(fleet, "anna", "ahead")
    fleet.clock.advance(-2 * HOUR)
    outcome = await fleet.revocation.revoke_device("anna", COMPROMISED, by="boss")
    assert (outcome.departed[0].listed_ended, await in_force(fleet)) == ({"line": 1}, {})
    await operator(fleet, "anna")
    await put(fleet, "anna", "hers")
    assert await in_force(fleet) == {"hers": "anna"}, "it is later than that end, which is yet to come"


async def test_an_import_into_a_new_store_looks_for_each_name_by_itself(fleet: Fleet) -> None:
    """Without statistics PostgreSQL compared each entry of the group with each name: of 30,000, for 0.7 seconds."""
    fill = (
        "INSERT INTO listed_devices (group_name, name, added_at, added_by) WITH RECURSIVE numbers(n) AS (SELECT 1 "
        "UNION ALL SELECT n + 1 FROM numbers WHERE n < 20000) SELECT 'line', 'm-' || n, '2027-03-01', 'anna' "
        "FROM numbers"
    )
    new = [ListedDevice(f"new-{number}", None) for number in range(50)]

    def import_them(connection: Connection) -> None:
        connection.exec_driver_sql(fill)
        listed_devices.put(connection, "line", new, by="anna", now=NOON)

    asked, _ = await noted(fleet.database.write(import_them))
    (deleting,) = [each for each in asked if each[0].startswith("DELETE FROM listed_devices")]
    plan = await fleet.database.read(lambda connection: plan_of(connection, *deleting))
    assert ("name=?" in plan) if fleet.database.url.get_backend_name() == "sqlite" else ("ANY" not in plan), plan


async def test_what_another_has_listed_after_him_counts_for_how_long_it_takes_too(fleet: Fleet) -> None:
    """The look at it is as long, and was on the event loop."""
    await operator(fleet, "boss")
    for by in ("anna", "boss"):
        await put(fleet, by, "meter-1", "meter-2")
    await put(fleet, "anna", "meter-3")
    counted = [
        await fleet.database.read(partial(listed_devices.count_made_by, maker="anna", most=each)) for each in (9, 1)
    ]
    assert counted == [3, 2]


async def test_rules_that_he_has_changed_and_devices_that_he_has_resumed_are_told(fleet: Fleet) -> None:
    for name in ("boss", "anna"):
        await operator(fleet, name)
    await group(fleet, "listed+token")
    await group(fleet, "token", name="hers")
    await register(fleet, Manufacturer(begin=NOON))
    for device in ("meter-1", "meter-2", "meter-3"):
        await fleet.enrol(device)
        await fleet.suspension.suspend_device(device, by="boss")
    await fleet.groups.change("hers", {"maximum_devices": 5}, by="boss")
    evil = {"ways": parse_ways(["listed"]), "webhook_url": "https://evil.example/", "lifetime": timedelta(days=9)}
    await fleet.groups.change("line", evil, by="anna")
    await ManufacturerService(fleet.database, fleet.clock, nothing).change(
        "acme", ManufacturerChange(LapsedLists.ACCEPT), by="anna"
    )
    await fleet.suspension.resume_batch(["meter-1", "meter-2"], [], by="anna")
    await fleet.suspension.suspend_device("meter-2", by="boss")
    await fleet.suspension.resume_device("meter-3", by="boss")
    await put(fleet, "boss", "his-word", "kept", "gone")
    await put(fleet, "anna", "kept", key=KEYS[1])
    lists = DeviceListService(fleet.database, fleet.clock)
    await lists.remove("line", "gone", by="anna")
    await lists.end_of("boss", by="anna")
    outcome = await fleet.revocation.revoke_device("anna", COMPROMISED, by="boss")
    (item,) = ended_answer(outcome)["operators"]
    told = ("groups_changed", "manufacturers_changed", "lists_cut", "devices_resumed")
    assert [item[each] for each in told] == [["line"], ["acme"], ["line"], ["meter-1"]]
    service = LeftBehindService(fleet.database, fleet.clock)
    left = await service.of("anna")
    was = spki_fingerprint(KEYS[0].public_key()).hex()
    assert [(each.group, each.count, each.names) for each in left.cuts] == [
        ("line", 1, [f"kept {was}"]),
        ("line", 1, ["gone"]),
        ("line", 1, []),
    ]
    (change,) = left.changes
    before = {"lifetime": "", "ways": "token+listed", "webhook_url": ""}
    assert (change.group, change.before) == ("line", before)
    assert change.after == {"lifetime": "9d", "ways": "listed", "webhook_url": "https://evil.example/"}
    assert (await service.of("anna", fleet.clock() + HOUR)).changes == []
    (change,) = (await service.of("boss")).changes
    assert (change.group, change.before, change.after) == ("hers", {"maximum_devices": ""}, {"maximum_devices": "5"})


def plan_of(connection: Connection, statement: str, parameters: Any) -> str:
    explain = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    return str(connection.exec_driver_sql(f"{explain} {statement}", parameters).all())


async def test_what_he_has_changed_is_found_by_an_index_of_the_audit_log(fleet: Fleet) -> None:
    """Of millions of entries it has the few that no certificate makes."""
    await group(fleet, "token")
    many = [(f"meter-{number}", {"n": number}) for number in range(2000)]
    await fleet.database.write(
        lambda connection: audit.append_each(connection, NOON, "admin", Action.CERTIFICATE_SIGNED, many)
    )
    await fleet.database.write(lambda connection: connection.exec_driver_sql("ANALYZE"))

    def look(connection: Connection) -> Sequence[str]:
        return rare_changes.subjects(connection, "admin", rare_changes.RULES, 9)

    asked, found = await noted(fleet.database.read(look))
    ((statement, parameters),) = [each for each in asked if "audit_entries" in each[0]]
    assert found == ["line"]
    plan = await fleet.database.read(lambda connection: plan_of(connection, statement, parameters))
    assert "ix_audit_entries_changes" in plan


async def test_an_older_version_does_not_let_in_what_has_ended(fleet: Fleet) -> None:
    """It knows nothing of ends: to it each entry lets its device in."""

    def back_and_forth(connection: Connection) -> list[tuple[str, str | None]]:
        for by, names in (("bert", ("both",)), ("anna", ("both", "his")), ("bert", ("good",))):
            listed_devices.put(connection, "line", [ListedDevice(each, None) for each in names], by=by, now=NOON)
        listed_devices.end_put_by(connection, {"anna": None}, NOON)
        configuration = schema._configuration()
        configuration.attributes["connection"] = connection
        command.downgrade(configuration, "0040")
        command.upgrade(configuration, revision.CURRENT)
        rows = connection.execute(select(list_rows.c.name, list_rows.c.added_by).order_by(list_rows.c.name))
        return [(row[0], row[1]) for row in rows]

    assert await fleet.database.write(back_and_forth) == [("both", "bert"), ("good", "bert")]


async def test_others_for_the_key_of_a_suspended_certificate_are_told(fleet: Fleet) -> None:
    every = await many_for_key(fleet, KEYS[0], more=2)
    another = await fleet.reenrol(every[-1], successor_csr(every[-1]))
    first, second, third = serials_of(every)
    await fleet.suspension.suspend_serial(second, by="boss")

    async def told(*serials: str) -> list[OtherForKey]:
        return [*await others_for_keys(fleet.database, fleet.clock, serials)]

    assert await told(second) == [OtherForKey(third, "meter-1"), OtherForKey(first, "meter-1")]
    assert (await told(first, third), await told(*serials_of([another])), await told()) == ([], [], [])
    assert await told("ab") == [], "of an unknown one nothing is told"
    async with fleet.database._surveys:  # An auditor has something counted that takes seconds.
        assert len(await asyncio.wait_for(told(second), 5)) == 2
    asked, _ = await noted(told(second, *(f"{number:x}" for number in range(300))))
    assert len(asked) < 10, "some for all together"

    def ended(connection: Connection) -> None:
        key = key_of(certificates.with_serial(connection, second))
        unfinished_key_ends.begin(connection, [key], invalidity_date=None, ended_at=fleet.clock(), ended_by="boss")

    await fleet.database.write(ended)
    assert await told(second) == [], "they follow their key in portions"


async def test_a_suspension_does_not_wait_for_long_until_others_for_its_key_are_found(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("provisioning.revocation.others_for_key._PATIENCE_SECONDS", 0.01)
    reading: Lasting[list[OtherForKey]] = Lasting(loop=asyncio.get_running_loop())  # As a store's is.
    stuck: Any = SimpleNamespace(read=lambda _: reading)
    asyncio.get_running_loop().call_later(1, reading.set_result, [OtherForKey("ab", "late")])
    assert await others_for_keys(stuck, fleet.clock, ["ab"]) == ()
    assert not reading.done(), "the answer does not wait for it"


async def test_who_had_a_role_from_him_is_named_also_if_they_renewed_it_for_each_other_or_are_gone(
    fleet: Fleet,
) -> None:
    """A thief makes admins, who give each other their roles anew, and dismisses the one who has registered his CA."""
    roles, admin = OperatorRoleService(fleet.database, fleet.clock), OperatorRole.ADMIN
    for name in ("boss", "anna", "bert", "carl", "dora", "emil"):
        await operator(fleet, name)
    for name, by in (
        *((each, "anna") for each in ("bert", "carl", "dora", "emil")),
        ("bert", "carl"),
        ("carl", "bert"),
        ("dora", "boss"),  # It is on another's word now.
    ):
        await roles.grant(name, admin, by=by)
    await fleet.revocation.decommission("emil", by="anna")
    outcome = await fleet.revocation.revoke_device("anna", COMPROMISED, by="boss")
    (item,) = ended_answer(outcome)["operators"]
    assert (item["operators_made"], item["operators_gone"]) == (["bert", "carl"], ["emil"])


async def test_who_had_a_role_from_him_is_named_behind_many_who_never_came(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anybody whose role he has only ended, or who was ended before he came."""
    monkeypatch.setattr("provisioning.store.rare_changes._PORTION", 2)
    roles, admin = OperatorRoleService(fleet.database, fleet.clock), OperatorRole.ADMIN
    for name in ("boss", "anna", "carl", "dora", "zoe"):
        await operator(fleet, name)
    for name, role, by in (("zoe", admin, "anna"), ("zoe", admin, "zoe"), ("carl", OperatorRole.AUDITOR, "anna")):
        await roles.grant(name, role, by=by)
    many = [f"a{number:03}" for number in range(5)]
    order = TokenOrder(many, None, Role.OPERATOR, operator_role=OperatorRole.ENROLLER)
    await fleet.token_service.create(order, by="anna")
    for name in ("a000", "carl"):
        await fleet.revocation.decommission(name, by="boss")
    outcome = await fleet.revocation.revoke_device("anna", COMPROMISED, by="boss")
    (item,) = ended_answer(outcome)["operators"]
    assert (item["operators_made"], item["operators_gone"]) == (["zoe"], [])
