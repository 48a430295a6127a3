"""Operators find and decide requests over the API: what is shown is what was asked, and their word is what holds."""

from __future__ import annotations

from datetime import timedelta

import pytest

from provisioning.pki.keys import generate_key, spki_fingerprint
from tests.support.fleet import Fleet
from tests.support.ways import enrol, group, pending, refusal
from tests.unit.provisioning.api.test_claims import Api
from tests.unit.provisioning.api.test_still_operator import caller


async def api(fleet: Fleet) -> Api:
    await group(fleet, "approval")
    await group(fleet, "approval", name="lab")
    return Api(fleet, await caller(fleet))


@pytest.mark.parametrize(("word", "state"), [("approve", "approved"), ("deny", "denied")])
async def test_a_request_is_shown_and_decided(fleet: Fleet, word: str, state: str) -> None:
    ask, key = await api(fleet), generate_key()
    number = await pending(fleet, "meter-1", key=key, label="lab")
    waiting = {
        "id": number,
        "group": "lab",
        "name": "meter-1",
        "key_sha256": spki_fingerprint(key.public_key()).hex(),
        "evidence": "nothing",
        "asked_from": None,
        "state": "pending",
        "requested_at": "2027-03-01T12:00:00Z",
        "decided_at": None,
        "decided_by": None,
    }
    assert await ask("GET", "/v1/approvals") == (200, {"items": [waiting], "next": None})
    fleet.clock.advance(timedelta(minutes=1))
    decided = waiting | {"state": state, "decided_at": "2027-03-01T12:01:00Z", "decided_by": "anna"}
    assert await ask("POST", f"/v1/approvals/{number}/decision", {"decision": word}) == (200, decided)
    assert await ask("GET", "/v1/approvals", query=f"state={state}") == (200, {"items": [decided], "next": None})
    if word == "approve":
        await enrol(fleet, "meter-1", key=key, label="lab")
    else:
        assert await refusal(fleet, "meter-1", key=key, label="lab") == "APPROVAL_DENIED"


async def test_they_are_found_by_group_and_state_and_told_in_pages(fleet: Fleet) -> None:
    ask = await api(fleet)
    numbers = [await pending(fleet, f"meter-{number}", label=("line", "lab")[number % 2]) for number in range(4)]
    await ask("POST", f"/v1/approvals/{numbers[1]}/decision", {"decision": "deny"})

    async def page(query: str) -> tuple[list[int], str | None]:
        _, found = await ask("GET", "/v1/approvals", query=query)
        return [each["id"] for each in found["items"]], found["next"]

    assert await page("group=lab") == ([numbers[1], numbers[3]], None)
    assert await page("group=lab&state=pending") == ([numbers[3]], None)
    assert await page("limit=3") == (numbers[:3], str(numbers[2]))
    assert await page(f"limit=3&after={numbers[2]}") == (numbers[3:], None)


@pytest.mark.parametrize("path", ["0", "9223372036854775808", "one"])
async def test_what_is_no_request_s_number_or_no_decision_is_refused(fleet: Fleet, path: str) -> None:
    ask = await api(fleet)
    number = await pending(fleet, "meter-1", label="lab")
    assert (await ask("POST", f"/v1/approvals/{path}/decision", {"decision": "approve"}))[0] == 400
    assert (await ask("GET", "/v1/approvals", query=f"after={path.replace('0', '-1', 1)}"))[0] == 400
    for odd in ({"decision": "maybe"}, {}, {"decision": "approve", "for": "meter-2"}):
        assert (await ask("POST", f"/v1/approvals/{number}/decision", odd))[0] == 400, odd
    status, refused = await ask("POST", f"/v1/approvals/{number + 1}/decision", {"decision": "approve"})
    assert (status, refused["code"]) == (404, "APPROVAL_UNKNOWN")
