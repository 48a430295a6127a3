"""What the rules of a group may be, and what is recorded of them."""

from __future__ import annotations

import dataclasses
import json
from datetime import timedelta
from typing import Any

import pytest

from provisioning.api.est import OPERATIONS, check_label
from provisioning.enrolment.groups import parse_ways
from provisioning.errors import Refused
from provisioning.store import audit, groups
from provisioning.store.groups import Group, NewKey, WayName
from tests.support.fleet import Fleet

SECOND, HOUR, DAY = timedelta(seconds=1), timedelta(hours=1), timedelta(days=1)

LEAST: dict[str, Any] = {
    "ways": (),
    "lifetime": 60 * SECOND,
    "maximum_devices": 1,
    "certificates_per_minute": 1,
    "same_key_window": 0 * DAY,
    "renewal_grace": 0 * DAY,
    "webhook_timeout": SECOND,
}
MOST: dict[str, Any] = {
    "ways": ((WayName.TOKEN,),) * 16,
    "lifetime": 825 * DAY,
    "maximum_devices": 10**9,
    "certificates_per_minute": 10**9,
    "same_key_window": 7 * DAY,
    "renewal_grace": 366 * DAY,
    "webhook_timeout": 30 * SECOND,
}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": "a b"}, "name"),
    ({"profile": "operator"}, "profile 'operator' is not one for devices: use device"),
    ({"profile": "none"}, "profile 'none' is not one for devices"),
    ({"issuing_line": "pumps"}, "issuing_line 'pumps' has no active CA: use default"),
    ({"ways": ((WayName.TOKEN,),) * 17}, "ways"),
    ({"ways": ((WayName.TOKEN,), (WayName.TOKEN, WayName.WEBHOOK))}, "webhook_url is missing"),
    ({"webhook_url": "http://example.org"}, "webhook_url must begin"),
    *(
        ({"lifetime": life}, r"lifetime_seconds must be 60 \(1m\) to 71280000 \(825d\)")
        for life in (59 * SECOND, 825 * DAY + SECOND)
    ),
    *(({field: number}, field) for field in ("maximum_devices", "certificates_per_minute") for number in (0, -1)),
    *(
        ({"same_key_window": window}, r"same_key_seconds must be 0 to 604800 \(7d\)")
        for window in (-SECOND, 7 * DAY + SECOND)
    ),
    ({"renewal_grace": -SECOND}, r"renewal_grace_seconds must be 0 to 31622400 \(366d\), and is -1$"),
    ({"renewal_grace": 400 * DAY}, r"renewal_grace_seconds must be 0 to 31622400 \(366d\), and is 34560000 \(400d\)$"),
    ({"renewal_grace": 11000 * HOUR}, r"renewal_grace_seconds must be .* \(366d\), and is 39600000 \(11000h\)$"),
    *(({"webhook_timeout": time}, "webhook_timeout_seconds must be") for time in (SECOND / 2, 30.5 * SECOND)),
]


async def test_what_is_wrong_with_a_group_is_named_when_it_is_made_and_when_it_is_changed(fleet: Fleet) -> None:
    await fleet.groups.create(Group("line"), by="admin")
    for rules, words in WRONG:
        with pytest.raises(Refused, match=f"INVALID_REQUEST: {words}"):
            await fleet.groups.create(Group(**({"name": "north"} | rules)), by="admin")
        with pytest.raises(Refused, match=f"INVALID_REQUEST: {words}"):
            await fleet.groups.change("line", rules, by="admin")
    assert [each.group for each in await fleet.groups.page(limit=9, after=None)] == [Group("line")]


async def test_a_group_is_closed_though_its_profile_is_not_configured_any_more(fleet: Fleet) -> None:
    """Nor has its line a CA: as when settings, or a CA, have gone since. Neither is given to a group anew."""
    lost = Group("line", profile="sensor", issuing_line="pumps")
    await fleet.database.write(lambda connection: groups.add(connection, lost, by="admin", now=fleet.clock()))
    changed = await fleet.groups.change("line", {"ways": ()}, by="admin")
    assert changed.group == dataclasses.replace(lost, ways=())
    await fleet.groups.change("line", {"profile": "device", "issuing_line": "default"}, by="admin")
    for rule, value in (("profile", "sensor"), ("issuing_line", "pumps")):
        with pytest.raises(Refused, match=f"INVALID_REQUEST: {rule} '{value}'"):
            await fleet.groups.change("line", {rule: value}, by="admin")


@pytest.mark.parametrize("name", [*OPERATIONS, "fullcmc"])
async def test_no_group_is_made_whose_name_cannot_be_a_label(fleet: Fleet, name: str) -> None:
    with pytest.raises(Refused, match=f"INVALID_REQUEST: name {name} is that of an EST operation"):
        await fleet.groups.create(Group(name), by="admin")
    with pytest.raises(Refused, match="NOT_FOUND: there is no EST label"):
        check_label(name)
    assert check_label(f"{name}-1") == f"{name}-1"


async def test_rules_may_go_to_their_bounds(fleet: Fleet) -> None:
    for name, rules in (("least", LEAST), ("most", MOST)):
        made = await fleet.groups.create(Group(name, **rules), by="admin")
        assert await fleet.groups.find(name) == made
    assert [each.group.name for each in await fleet.groups.page(limit=1, after="least")] == ["most"]


async def test_every_rule_is_audited_as_it_was_made_and_as_it_was_changed(fleet: Fleet) -> None:
    await fleet.groups.create(Group("line"), by="anna")
    fleet.clock.advance(DAY)
    rules = {"ways": parse_ways(["claim+webhook", "token"]), "webhook_url": "https://h/", "new_key": NewKey.REPLACE}
    changed = await fleet.groups.change("line", rules, by="bert")
    assert changed == await fleet.groups.find("line")
    assert (changed.created_by, changed.changed_by, changed.changed_at - changed.created_at) == ("anna", "bert", DAY)
    entries = await fleet.database.read(lambda connection: audit.entries(connection, 0, 9))
    facts = [json.loads(each.details) for each in entries]
    assert [(each["ways"], each["webhook_url"], each["new_key"]) for each in facts] == [
        (["token"], None, "refuse"),
        (["claim+webhook", "token"], "https://h/", "replace"),
    ]
    assert facts[1].pop("before") == {"ways": ["token"], "webhook_url": None, "new_key": "refuse"}
    assert facts[1].keys() == {each.name for each in dataclasses.fields(Group)} - {"name"}


async def test_a_group_is_made_once_and_must_exist_to_be_changed(fleet: Fleet) -> None:
    await fleet.groups.create(Group("north"), by="admin")
    with pytest.raises(Refused, match="GROUP_EXISTS"):
        await fleet.groups.create(Group("north"), by="admin")
    with pytest.raises(Refused, match="GROUP_UNKNOWN"):
        await fleet.groups.change("south", {}, by="admin")


async def test_a_name_that_no_store_can_hold_is_refused_not_a_failure(fleet: Fleet) -> None:
    with pytest.raises(Refused, match=r"GROUP_UNKNOWN|INVALID_REQUEST"):
        await fleet.groups.find("a\x00b")


def test_ways_are_read_as_operators_write_them() -> None:
    assert parse_ways(["token", "token+token", "token"]) == ((WayName.TOKEN,),)
    with pytest.raises(Refused, match="'pigeon' is not a way to enrol: use token"):
        parse_ways(["token+pigeon"])
