"""Who shows nothing is told nothing of a group: one answer, after the same work, whatever the group is like."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.engine import Connection

from provisioning.enrolment.attempt import TokenCredential
from provisioning.enrolment.device_list import DeviceListService
from provisioning.enrolment.groups import parse_ways
from provisioning.enrolment.problems import text_answer
from provisioning.enrolment.tokens import TokenOrder
from provisioning.errors import Code, Refused, RefusedStranger
from provisioning.pki.keys import generate_key, spki_fingerprint
from provisioning.store import listed_devices
from tests.support.fleet import Fleet, successor_csr
from tests.support.manufacturer import Manufacturer
from tests.support.requests import NOON, csr_der
from tests.support.ways import HOUR, claim, group, pending, register

KINDS = {
    "of nobody": None,
    "token": ("token",),
    "closed": (),
    "claim": ("claim",),
    "manufacturer": ("manufacturer",),
    "listed": ("listed",),
    "token+listed": ("token+listed",),
    "several": ("claim", "listed", "token+approval"),
    "claim+webhook": ("claim+webhook",),
    "listed+webhook": ("listed+webhook", "claim"),
}
TRUE_REASONS = {Code.TOKEN_MISSING, Code.WAY_REFUSED, Code.NOT_LISTED}
NAMES = ("meter-1", "meter-2", "meter-3")
"""On the list with another key, with none, and not on it."""


async def groups_of_every_kind(fleet: Fleet) -> list[str]:
    """Make them, each with a list, and return their names."""
    another_key = spki_fingerprint(generate_key().public_key()).hex()
    for number, ways in enumerate(KINDS.values()):
        if ways is not None:
            await group(fleet, *ways, name=f"group-{number}", webhook_url="https://192.0.2.1/")
            await DeviceListService(fleet.database, fleet.clock).add(
                f"group-{number}", [("meter-1", another_key), ("meter-2", None)], by="admin"
            )
    return [f"group-{number}" for number in range(len(KINDS))]


async def refused(fleet: Fleet, name: str, **presented: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await fleet.enrolment.enrol(csr_der(names=[name]), presented.pop("token", None), **presented)
    return caught.value


def told(refusal: Refused) -> tuple[int, str, list[tuple[str, str]]]:
    answer = text_answer(refusal)
    return answer.status_code, bytes(answer.body).decode(), sorted(answer.headers.items())


async def test_a_stranger_hears_the_same_of_every_group_and_the_log_hears_why(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[str] = []
    find = listed_devices.find

    def counted(connection: Connection, group_name: str, name: str) -> Any:
        looked_up.append(group_name)
        return find(connection, group_name, name)

    monkeypatch.setattr(listed_devices, "find", counted)
    labels = await groups_of_every_kind(fleet)
    found = [await refused(fleet, name, label=label) for label in labels for name in NAMES]
    assert {each.code for each in found} == TRUE_REASONS
    ((status, text, headers),) = {(*told(each)[:2], tuple(told(each)[2])) for each in found}
    assert (status, text.split(":")[0]) == (401, "NOT_ADMITTED")
    assert ("www-authenticate", 'Basic realm="enrolment", charset="UTF-8"') in headers
    assert looked_up == [label for label in labels for _ in NAMES], "once each, so that it takes as long"
    looked_up.clear()
    (issued,) = await fleet.token_service.create(TokenOrder(group="group-1"), by="admin")
    await fleet.enrolment.enrol(csr_der(names=["meter-3"]), TokenCredential("meter-3", issued.token))
    assert looked_up == [], "who shows something may know that his group has no list"


async def test_a_certificate_of_nobody_s_is_a_stranger_s(fleet: Fleet) -> None:
    labels = await groups_of_every_kind(fleet)
    idevid, _ = Manufacturer(begin=NOON).idevid("meter-1")
    answers = {told(await refused(fleet, "meter-1", label=label, certificate=idevid))[1] for label in labels}
    (text,) = answers
    assert text.endswith("the certificate that you present is no claim, and the CA that has issued it is not itself "
                         "registered as a manufacturer's\n")  # fmt: skip


async def test_who_enrols_with_his_own_certificate_is_told_to_renew_it_or_that_it_is_over(fleet: Fleet) -> None:
    own = await fleet.enrol("meter-1")
    for label in (None, "north"):
        text = told(await refused(fleet, "meter-1", label=label, certificate=own))[1]
        assert text.endswith("; the certificate that you present admits nobody anew: renew it with /simplereenroll\n")
    await fleet.revocation.decommission("meter-1", by="admin")
    with pytest.raises(Refused, match="decommissioned for good, enrol it under another name"):
        await fleet.reenrol(own, successor_csr(own))


async def test_what_has_ended_is_told_so_and_nothing_of_the_group(fleet: Fleet) -> None:
    labels = await groups_of_every_kind(fleet)
    token = await fleet.token("meter-1", "spare")
    await group(fleet, "token", name="other")
    shared = await claim(fleet, group_name="other")
    fleet.clock.advance(HOUR)
    await group(fleet, name="spare")
    for ways in (["claim"], ["listed"], [], ["token"]):
        await fleet.groups.change("spare", {"ways": parse_ways(ways)}, by="admin")
        refusal = await refused(fleet, "meter-1", token=TokenCredential("meter-1", token))
        assert refusal.code is Code.TOKEN_EXPIRED, ways
    for label in labels:
        refusal = await refused(fleet, "meter-1", token=TokenCredential("meter-1", token), label=label)
        assert refusal.code is Code.TOKEN_EXPIRED, label
        fleet.clock.now = shared.not_valid_after_utc
        assert (await refused(fleet, "meter-1", certificate=shared, label=label)).code is Code.CLAIM_ENDED, label
        fleet.clock.now = NOON + HOUR


async def test_who_shows_something_good_is_told_what_it_lacks(fleet: Fleet) -> None:
    (issued,) = await fleet.token_service.create(TokenOrder(group="north"), by="admin")
    token = TokenCredential("meter-1", issued.token)
    await group(fleet, "claim", "token+listed", name="north")
    refusal = await refused(fleet, "meter-1", token=token)
    assert (refusal.code, type(refusal)) == (Code.NOT_LISTED, Refused)
    await fleet.groups.change("north", {"ways": ()}, by="admin")
    assert "north is closed" in (await refused(fleet, "meter-1", token=token)).detail
    assert (await refused(fleet, "meter-1", token=token, label="south")).code is Code.TOKEN_GROUP
    await group(fleet, "claim", name="south")
    acme = Manufacturer(begin=NOON)
    await group(fleet, "claim")
    await register(fleet, acme)
    idevid, _ = acme.idevid("meter-1")
    assert (
        "group line admits devices by claim; this request shows manufacturer"
        in (await refused(fleet, "meter-1", certificate=idevid)).detail
    )


async def test_who_may_wait_for_an_approval_is_known_by_that_alone(fleet: Fleet) -> None:
    await group(fleet, "approval", "token")
    await pending(fleet, "meter-1", label="line")
    assert isinstance(await refused(fleet, "meter-1", label="elsewhere"), RefusedStranger)
