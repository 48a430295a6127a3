"""The list of expected devices: what is taken into it, and what an entry is worth."""

from __future__ import annotations

import json
from typing import Any

import pytest

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.device_list import DeviceListService
from provisioning.errors import Code, Refused
from provisioning.pki.keys import PrivateKey, generate_key, spki_fingerprint
from provisioning.store import audit
from provisioning.store.audit import Action
from provisioning.store.groups import NewKey
from tests.support.fleet import Fleet
from tests.support.manufacturer import Manufacturer
from tests.support.requests import NOON
from tests.support.ways import claim, enrol, group, is_good, refusal, register


def fingerprint(key: PrivateKey) -> str:
    return spki_fingerprint(key.public_key()).hex()


async def details(fleet: Fleet, action: Action) -> list[Any]:
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    return [json.loads(each.details) for each in entries if each.action == action]


async def listed(fleet: Fleet, *entries: tuple[str, str | None]) -> dict[int, str]:
    outcome = await DeviceListService(fleet.database, fleet.clock).add("line", entries, by="admin")
    return dict(outcome.errors)


async def test_a_listed_key_lets_its_device_in_and_a_listed_name_alone_does_not(fleet: Fleet) -> None:
    await group(fleet, "listed", "listed+token")
    key = generate_key()
    await listed(fleet, ("meter-1", spki_fingerprint(key.public_key()).hex()), ("meter-2", None))
    await enrol(fleet, "meter-1", key=key, label="line")
    assert await refusal(fleet, "meter-1", label="line") is Code.NOT_LISTED, "another key"
    assert await refusal(fleet, "meter-2", label="line") is Code.WAY_REFUSED, "a name is known to many"
    assert await refusal(fleet, "meter-3", label="line") is Code.NOT_LISTED
    token = TokenCredential("meter-2", await fleet.token("meter-2", "line"))
    await enrol(fleet, "meter-2", token=token)
    assert [each["paid_with"] for each in await details(fleet, Action.SIGNING_CERTIFICATE)] == [
        "listed key",
        "token+listed",
    ]
    token = TokenCredential("meter-3", await fleet.token("meter-3", "line"))
    assert await refusal(fleet, "meter-3", token=token) is Code.NOT_LISTED


async def test_an_entry_is_replaced_and_removed_in_its_own_list_and_no_other_goes(fleet: Fleet) -> None:
    service = DeviceListService(fleet.database, fleet.clock)
    both: list[tuple[str, str | None]] = [("meter-1", None), ("meter-2", None)]
    for name in ("line", "other"):
        await service.add(name, both, by="admin")

    async def entries(name: str) -> list[tuple[str, bool]]:
        found = [each.device for each in await service.page(name, limit=9, after=None)]
        return [(each.name, each.spki_sha256 is not None) for each in found]

    await service.add("line", [("meter-2", "00" * 32)], by="admin")
    assert await entries("line") == [("meter-1", False), ("meter-2", True)]
    await service.remove("line", "meter-1", by="admin")
    assert await entries("line") == [("meter-2", True)]
    assert await entries("other") == [("meter-1", False), ("meter-2", False)]


async def test_a_list_takes_what_is_right_and_names_what_is_wrong(fleet: Fleet) -> None:
    errors = await listed(fleet, ("meter-1", None), ("a b", None), ("meter-2", "zz"), ("meter-1", None), ("", None))
    assert list(errors) == [1, 2, 3, 4]
    service = DeviceListService(fleet.database, fleet.clock)
    assert [each.device.name for each in await service.page("line", limit=9, after=None)] == ["meter-1"]
    for new, replaced in ((1, 1), (0, 0)):  # The same again changes nothing.
        outcome = await service.add("line", [("meter-1", "00" * 32), ("meter-2", None)], by="admin")
        assert (outcome.new, outcome.replaced) == (new, replaced)
    await service.remove("line", "meter-2", by="admin")
    with pytest.raises(Refused, match="DEVICE_UNKNOWN"):
        await service.remove("line", "meter-2", by="admin")


async def test_a_name_twice_in_a_batch_has_the_first_key_and_in_a_later_batch_the_later_one(fleet: Fleet) -> None:
    await group(fleet, "listed")
    keys = [generate_key() for _ in range(3)]
    first, second, later = (fingerprint(key) for key in keys)
    assert list(await listed(fleet, ("meter-1", first), ("meter-1", second))) == [1]
    assert await refusal(fleet, "meter-1", key=keys[1], label="line") is Code.NOT_LISTED
    await listed(fleet, ("meter-1", ":".join(later[place : place + 2] for place in range(0, 64, 2)).upper()))
    assert await refusal(fleet, "meter-1", key=keys[0], label="line") is Code.NOT_LISTED
    await enrol(fleet, "meter-1", key=keys[2], label="line")


async def test_a_listed_key_is_its_device_s_and_a_listed_name_is_not(fleet: Fleet) -> None:
    await group(fleet, "listed", "listed+claim", new_key=NewKey.REPLACE)
    old, new = generate_key(), generate_key()
    await listed(fleet, ("meter-1", fingerprint(old)), ("meter-2", fingerprint(old)))
    first = await enrol(fleet, "meter-1", key=old, label="line")
    await listed(fleet, ("meter-1", fingerprint(new)))
    second = await enrol(fleet, "meter-1", key=new, label="line")
    assert (await is_good(fleet, first), await is_good(fleet, second)) == (False, True)
    await listed(fleet, ("meter-1", None))
    assert await refusal(fleet, "meter-1", certificate=await claim(fleet)) is Code.NAME_TAKEN


async def test_a_listed_key_is_its_device_s_whichever_way_that_came_in(fleet: Fleet) -> None:
    await group(fleet, "manufacturer", "listed", new_key=NewKey.REPLACE)
    acme = Manufacturer(begin=NOON)
    await register(fleet, acme)
    first = await enrol(fleet, "SN17", certificate=acme.idevid("SN17")[0])
    key = generate_key()
    await listed(fleet, ("SN17", fingerprint(key)))
    second = await enrol(fleet, "SN17", key=key, label="line")
    assert (await is_good(fleet, first), await is_good(fleet, second)) == (False, True)


async def test_what_is_listed_and_unlisted_is_audited(fleet: Fleet) -> None:
    service = DeviceListService(fleet.database, fleet.clock)
    with pytest.raises(Refused, match="INVALID_REQUEST: group 'a b'"):
        await service.add("a b", [("meter-1", None)], by="admin")
    await listed(fleet, ("a b", None))
    await listed(fleet, ("meter-1", None), ("a b", None))
    key = "0a" * 32
    await listed(fleet, ("meter-1", key.upper()), ("meter-2", None))
    await service.remove("line", "meter-2", by="admin")
    assert await details(fleet, Action.DEVICES_LISTED) == [
        {"count": 1, "new": 1, "devices": ["meter-1"]},
        {"count": 2, "new": 1, "devices": [f"meter-1 {key}", "meter-2"]},
    ], "whose key was changed, and to which: the list itself may be put right again behind it"
    assert await details(fleet, Action.DEVICES_UNLISTED) == [{"name": "meter-2"}]


async def test_a_list_that_is_imported_again_unchanged_does_not_fill_the_audit_log_with_its_names(fleet: Fleet) -> None:
    """Every night, say; an entry that another operator repeats is his from then on."""
    service = DeviceListService(fleet.database, fleet.clock)
    batch = [("meter-1", "0a" * 32), ("meter-2", None)]
    for by in ("anna", "anna", "bert"):
        await service.add("line", batch, by=by)
    both = [f"meter-1 {'0a' * 32}", "meter-2"]
    assert await details(fleet, Action.DEVICES_LISTED) == [
        {"count": 2, "new": 2, "devices": both},
        {"count": 2, "new": 0, "devices": []},
        {"count": 2, "new": 0, "devices": both},
    ]


async def test_whose_entry_has_let_a_device_in_is_responsible_for_it(fleet: Fleet) -> None:
    """Not the group: an operator may be called as one, and would be said to have done it."""
    await group(fleet, "listed", new_key=NewKey.REPLACE)
    service = DeviceListService(fleet.database, fleet.clock)
    for operator in ("anna", "bert"):
        key = generate_key()
        await service.add("line", [("meter-1", fingerprint(key))], by=operator)
        await enrol(fleet, "meter-1", key=key, label="line")
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 99))
    done = [(each.actor, each.action) for each in entries if each.subject == "meter-1"]
    signed = [Action.SIGNING_CERTIFICATE, Action.CERTIFICATE_SIGNED]
    assert done == [("anna", each) for each in signed] + [("bert", each) for each in (*signed, Action.REVOKED)]
