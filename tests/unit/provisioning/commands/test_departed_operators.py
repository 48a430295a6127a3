"""What is said of operators who leave: in numbers, and only what there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from provisioning.client.enrolment_answers import ClaimCertificate
from provisioning.client.operator_answers import DepartedOperator
from provisioning.commands.departed_operators import claims_going_on, say_who_left
from provisioning.commands.lifecycle_commands import _tell_who_left

NOTHING: dict[str, Any] = {
    name: [] if field.annotation == list[str] else 0
    for name, field in DepartedOperator.model_fields.items()
    if name != "name"
}


def said(capsys: pytest.CaptureFixture[str], *, stolen: bool = False, **numbers: int | list[str] | None) -> list[str]:
    say_who_left([DepartedOperator(name="anna", **NOTHING | numbers)], stolen=stolen)
    return capsys.readouterr().err.splitlines()


def test_what_is_void_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys) == []
    assert said(capsys, tokens_voided=1, approvals_undone=1) == [
        "fleet-provisioning: 1 unused token that anna made is void",
        "fleet-provisioning: 1 request that anna approved waits for another decision",
    ]
    assert said(capsys, claims_ended=2) == ["fleet-provisioning: 2 claims that anna made have ended"]
    assert said(capsys, trials_ended=1) == [
        "fleet-provisioning: 1 device on trial of claims that anna made cannot be activated any more"
    ]
    void, undone, left = said(capsys, tokens_voided=2, approvals_undone=3, claims_left=1, listed_left=2)
    assert void == "fleet-provisioning: 2 unused tokens that anna made are void"
    assert undone == "fleet-provisioning: 3 requests that anna approved wait for another decision"
    assert left.endswith(
        "anna leaves behind what lets others in: 1 claim, 2 keys on lists; if that is not to stay: claim end, or "
        "this again with --end-claims, listed end --by anna, or this again with --end-listed (operator left anna)"
    )
    first, roles, ended, inside = said(
        capsys,
        stolen=True,
        manufacturers_ended=["acme"],
        devices_left=3,
        operators_left=2,
        operators_made=["carl", "dora"],
        roles_ended=["yan", "zoe"],
    )
    assert first == (
        "fleet-provisioning: anna has given a role to carl, dora, who may let others in; if that is not to stay: "
        "fleet-provisioning revoke --device carl --device dora --reason keyCompromise, or operator grant NAME --role "
        "auditor"
    )
    assert roles == (
        "fleet-provisioning: the roles that anna gave to yan, zoe have ended: no operator is enrolled by that name; "
        "who enrols by it only reads, unless an admin grants more: operator grant"
    )
    assert ended == (
        "fleet-provisioning: 1 manufacturer that anna registered has ended: acme; an admin who knows the CA registers "
        "it again: manufacturer add"
    )
    assert inside == (
        "fleet-provisioning: devices that came in on anna's word stay, at least 3 of them by a manufacturer's CA or a "
        "key on a list: audit show --by anna"
    )
    unknown: dict[str, Any] = {name: None for name in NOTHING if name.endswith("_left")}
    (told,) = said(capsys, tokens_voided=1, **unknown)[1:]
    assert told.endswith("that lets others in could not be counted: operator left anna, audit show --by anna")


def test_what_has_ended_on_lists_and_after_a_theft_what_was_changed(capsys: pytest.CaptureFixture[str]) -> None:
    changed: dict[str, Any] = {
        "groups_changed": ["west"],
        "manufacturers_changed": ["acme", "zenith"],
        "devices_resumed": [f"meter-{number}" for number in range(21)],
        "listed_left": 1,
        "lists_cut": ["east"],
        "operators_gone": ["emil"],
    }
    assert said(capsys, **changed | {"listed_left": 0}) == [], "of who is dismissed, operator left tells it"
    unlisted, gone, inside, still, groups, makers, cut, resumed = said(
        capsys, stolen=True, listed_ended=3, lists_ended=["north", "west"], **changed
    )
    assert unlisted == (
        "fleet-provisioning: 3 entries that anna put on the lists of north, west have ended; whoever knows the devices "
        "lists them again: listed import GROUP --file (listed list says which)"
    )
    assert "emil had a role from anna and is gone, and what they made may let others in (operator left NAME)" in gone
    assert "fleet-provisioning revoke --device emil --reason keyCompromise" in gone
    assert inside == ("fleet-provisioning: devices that came in on anna's word stay: audit show --by anna"), (
        "also if their entries were removed since"
    )
    assert still.endswith(
        "1 key on lists from anna lets its device in still, listed by another key of anna since; if they are not to: "
        "listed end --by anna"
    )
    assert groups == (
        "fleet-provisioning: anna has made, or changed, the rules of west; operator left anna shows what they were; "
        "put them right: group set; to let nobody in until then: group set west --closed"
    )
    assert "changed the terms or the lists of acme, zenith: look at them: manufacturer show" in makers
    assert (
        "anna has ended, removed or replaced entries on the lists of east, perhaps others' (operator left anna" in cut
    )
    assert "has resumed meter-0, meter-1," in resumed
    assert resumed.endswith("--device meter-18 --device meter-19")
    every = (
        " and at least 1 more (all: audit show resumed --by anna); if nobody else knows why: suspend --device meter-0 "
    )
    assert every in resumed


async def test_claims_that_go_on_are_read_once_for_all_and_one_that_has_expired_does_not() -> None:
    now, moment = datetime.now(UTC), timedelta(minutes=1)

    read = list[str]()

    async def claims() -> AsyncIterator[ClaimCertificate]:
        read.append("all")
        for name, by, expires_at, ended_at in (
            ("a", "anna", now + moment, None),
            ("b", "anna", now - moment, None),
            ("c", "anna", now + moment, now - moment),
            ("d", "bert", now + moment, None),
        ):
            yield ClaimCertificate.model_construct(name=name, created_by=by, expires_at=expires_at, ended_at=ended_at)

    client: Any = SimpleNamespace(claims=claims)
    assert await claims_going_on(client, {"anna", "bert", "carl"}) == {"anna": ["a"], "bert": ["d"]}
    assert (await claims_going_on(client, set()), read) == ({}, ["all"])


async def test_claims_end_also_if_an_older_service_can_end_no_entries(capsys: pytest.CaptureFixture[str]) -> None:
    async def claims() -> AsyncIterator[ClaimCertificate]:
        expires_at = datetime.now(UTC) + timedelta(minutes=1)
        yield ClaimCertificate.model_construct(name="a", created_by="anna", expires_at=expires_at, ended_at=None)

    async def end_listed_by(_: str) -> None:
        raise LookupError("404")

    async def end_claim(_: str) -> None:
        pass

    client: Any = SimpleNamespace(claims=claims, end_listed_by=end_listed_by, end_claim=end_claim)
    anna = [DepartedOperator(name="anna", **NOTHING)]
    with pytest.raises(LookupError):
        await _tell_who_left(client, anna, end_claims=True, end_listed=True)
    assert capsys.readouterr().err == "fleet-provisioning: 1 claim that anna made has ended\n"
