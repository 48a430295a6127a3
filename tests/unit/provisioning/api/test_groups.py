"""Operators make, show, list and change groups over the API: what they say is what holds, and the rest is as it was."""

from __future__ import annotations

from datetime import timedelta

import pytest

from provisioning.store.authorities import DEFAULT_LINE
from provisioning.store.groups import DEFAULT_PROFILE
from tests.support.fleet import Fleet
from tests.support.ways import group
from tests.unit.provisioning.api.test_claims import Api, api

RULES = {
    "ways": ["token", "claim+approval"],
    "profile": DEFAULT_PROFILE,
    "lifetime_seconds": 86_400,
    "maximum_devices": 7,
    "certificates_per_minute": 11,
    "same_key_seconds": 61,
    "new_key": "approve",
    "server_keys": True,
    "tls_unique": True,
    "renewal_grace_seconds": 62,
    "webhook_url": "https://hook.example.org/ask",
    "webhook_timeout_seconds": 9,
    "issuing_line": DEFAULT_LINE,
}
"""All that a group can say; each but the profile and the line, of which there is one here, is not what it is unsaid."""
UNLESS_SAID = {
    "profile": DEFAULT_PROFILE,
    "lifetime_seconds": None,
    "maximum_devices": None,
    "certificates_per_minute": None,
    "same_key_seconds": 3600,
    "new_key": "refuse",
    "server_keys": False,
    "tls_unique": False,
    "renewal_grace_seconds": 0,
    "webhook_url": None,
    "webhook_timeout_seconds": 5,
    "issuing_line": DEFAULT_LINE,
}
MADE = {"created_at": "2027-03-01T12:00:00Z", "created_by": "anna"}
CHANGED = {"profile_known": True, "full": None, "changed_at": "2027-03-01T12:00:00Z", "changed_by": "anna"}


async def test_a_group_is_as_it_was_ordered(fleet: Fleet) -> None:
    ask = await api(fleet)
    made = {"name": "lab"} | RULES | MADE | CHANGED
    assert await ask("POST", "/v1/groups", {"name": "lab"} | RULES) == (201, made)
    assert await ask("GET", "/v1/groups/lab") == (200, made | {"full": False})
    plain = {"name": "plain", "ways": ["token"]}
    assert await ask("POST", "/v1/groups", plain) == (201, plain | UNLESS_SAID | MADE | CHANGED)
    status, twice = await ask("POST", "/v1/groups", plain)
    assert (status, twice["code"]) == (409, "GROUP_EXISTS")


@pytest.mark.parametrize("rule", [each for each in RULES if each not in {"profile", "issuing_line"}])
async def test_one_rule_is_changed_and_no_other(fleet: Fleet, rule: str) -> None:
    ask = await api(fleet)
    _, before = await ask("POST", "/v1/groups", {"name": "lab", "ways": ["token"], "webhook_url": RULES["webhook_url"]})
    fleet.clock.advance(timedelta(minutes=1))
    status, after = await ask("PATCH", "/v1/groups/lab", {rule: RULES[rule]})
    now = {"changed_at": "2027-03-01T12:01:00Z"}
    assert (status, after) == (200, before | {rule: RULES[rule]} | now)
    assert await ask("GET", "/v1/groups/lab") == (200, after | {"full": False})


async def test_who_has_changed_it_is_told_and_a_zero_is_no_limit(fleet: Fleet) -> None:
    ask = await api(fleet)
    await group(fleet, "token", name="lab")
    _, limited = await ask("PATCH", "/v1/groups/lab", RULES)
    assert (limited["created_by"], limited["changed_by"]) == ("admin", "anna")
    limits = ("lifetime_seconds", "maximum_devices", "certificates_per_minute")
    _, after = await ask("PATCH", "/v1/groups/lab", dict.fromkeys(limits, 0) | {"webhook_url": ""})
    assert after == limited | dict.fromkeys([*limits, "webhook_url"])


async def test_groups_are_told_in_pages_in_order_of_name(fleet: Fleet) -> None:
    ask = await api(fleet)
    for name in "cab":
        assert (await ask("POST", "/v1/groups", {"name": name, "ways": ["token"]}))[0] == 201

    async def page(query: str) -> tuple[list[str], str | None]:
        _, found = await ask("GET", "/v1/groups", query=query)
        return [each["name"] for each in found["items"]], found["next"]

    assert await page("limit=2") == (["a", "b"], "b")
    assert await page("limit=2&after=b") == (["c", "line"], None)


@pytest.mark.parametrize(
    "odd",
    [
        {"maximum_devices": -1}, {"maximum_devices": 10**9 + 1}, {"certificates_per_minute": -1},
        {"certificates_per_minute": 10**9 + 1}, {"lifetime_seconds": -1}, {"same_key_seconds": 10**12 + 1},
        {"renewal_grace_seconds": -1}, {"lifetime_seconds": 10**18}, {"webhook_timeout_seconds": 0},
        {"webhook_timeout_seconds": 31},
        {"webhook_url": "https://x.example/" + 500 * "x"}, {"ways": ["token"] * 33}, {"more": 1}, {"new_key": "any"},
    ],
)  # fmt: skip
async def test_what_no_group_can_have_is_refused(fleet: Fleet, odd: dict[str, object]) -> None:
    ask: Api = await api(fleet)
    assert (await ask("POST", "/v1/groups", {"name": "lab", "ways": ["token"]} | odd))[0] == 400
    assert (await ask("PATCH", "/v1/groups/line", odd))[0] == 400
    assert (await ask("GET", "/v1/groups/lab"))[0] == 404
