"""The webhook as a condition: it is asked about exactly what is decided, may veto, and never lets in alone."""

from __future__ import annotations

from datetime import timedelta

import pytest

from provisioning.enrolment.approvals import ApprovalService
from provisioning.enrolment.attempt import Question, TokenCredential, Verdict
from provisioning.enrolment.device_list import DeviceListService
from provisioning.enrolment.groups import parse_ways
from provisioning.errors import Code, Refused
from provisioning.pki.keys import generate_key, spki_fingerprint
from tests.support.fleet import Fleet
from tests.support.ways import HOUR, enrol, group, pending, refusal


async def test_the_webhook_is_asked_about_exactly_what_is_decided_and_may_veto(fleet: Fleet) -> None:
    await group(fleet, "token+webhook", webhook_url="http://127.0.0.1:1/", same_key_window=timedelta())
    asked: list[Question] = []
    allowed = True

    async def ask(question: Question) -> Verdict:
        asked.append(question)
        return Verdict(question, allowed=allowed, reason="not in stock")

    fleet.enrolment.service._ask = ask
    key = generate_key()
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    await enrol(fleet, "meter-1", key=key, token=token)
    (question,) = asked
    assert (question.group, question.device, question.evidence) == ("line", "meter-1", ("token",))
    assert question.key_sha256 == spki_fingerprint(key.public_key()).hex()
    assert not question.enrolled_before
    allowed = False
    token = TokenCredential("meter-2", await fleet.token("meter-2", "line"))
    with pytest.raises(Refused, match=r"WEBHOOK_VETO: .*not in stock"):
        await enrol(fleet, "meter-2", token=token)
    # Who is refused anyway is not asked about; a veto spends no token.
    assert await refusal(fleet, "meter-3", token=token) is Code.TOKEN_DEVICE
    assert len(asked) == 2
    allowed = True
    await enrol(fleet, "meter-2", token=token)


async def test_an_answer_to_another_question_counts_for_nothing(fleet: Fleet) -> None:
    await group(fleet, "token+webhook", webhook_url="http://127.0.0.1:1/")

    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    assert await refusal(fleet, "meter-1", token=token) is Code.WEBHOOK_FAILED, "there is nobody who asks it"
    asked: list[Question] = []

    async def answers_another(question: Question) -> Verdict:
        asked.append(question)
        return Verdict(Question("x", HOUR, "x", "x", "x", (), enrolled_before=False), allowed=True)

    fleet.enrolment.service._ask = answers_another
    assert await refusal(fleet, "meter-1", token=token) is Code.UNAVAILABLE
    assert len(asked) == 3


@pytest.mark.parametrize("ways", [("token+webhook", "token+approval"), ("token+approval", "token+webhook")])
async def test_a_webhook_is_asked_before_an_operator_who_decides_where_it_lets_nobody_in(
    fleet: Fleet, ways: tuple[str, str]
) -> None:
    """Each alternative is sufficient by itself, whatever the order, and whether or not the webhook is there."""
    await group(fleet, *ways, webhook_url="http://127.0.0.1:1/")
    answers = True

    async def ask(question: Question) -> Verdict:
        return Verdict(question, allowed=answers)

    unasked, fleet.enrolment.service._ask = fleet.enrolment.service._ask, ask
    await enrol(fleet, "meter-1", token=TokenCredential("meter-1", await fleet.token("meter-1", "line")))
    approvals = ApprovalService(fleet.database, fleet.clock)
    assert (await approvals.page(limit=9, after=0, group="line", state=None))[0] == [], "nobody had to wait"
    answers = False
    for name in ("meter-2", "meter-3"):
        key, token = generate_key(), TokenCredential(name, await fleet.token(name, "line"))
        number = await pending(fleet, name, key=key, token=token)
        await approvals.decide(number, approve=True, by="boss")
        await enrol(fleet, name, key=key, token=token)
        fleet.enrolment.service._ask = unasked  # It does not answer any more.


async def test_every_alternative_s_question_is_asked_once(fleet: Fleet) -> None:
    await group(fleet, "token+webhook", "token+listed+webhook", webhook_url="http://127.0.0.1:1/")
    await DeviceListService(fleet.database, fleet.clock).add("line", [("meter-1", None)], by="admin")
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    asked: list[tuple[str, ...]] = []

    async def ask(question: Question) -> Verdict:
        asked.append(question.evidence)
        return Verdict(question, allowed=False)

    async def fails(question: Question) -> Verdict:
        asked.append(question.evidence)
        raise Refused(Code.WEBHOOK_FAILED, "try again later")

    fleet.enrolment.service._ask = ask
    assert await refusal(fleet, "meter-1", token=token) is Code.WEBHOOK_VETO
    assert asked == [("token",), ("token", "listed")]
    asked.clear()
    fleet.enrolment.service._ask = fails
    assert await refusal(fleet, "meter-1", token=token) is Code.WEBHOOK_FAILED
    assert asked == [("token",)], "nor is a webhook that does not answer waited for again"


async def test_an_operator_decides_where_every_alternative_with_a_webhook_is_vetoed(fleet: Fleet) -> None:
    by_webhook = ("token+webhook", "token+listed+webhook", "listed+webhook")
    await group(fleet, *by_webhook, "token+approval", webhook_url="http://127.0.0.1:1/")
    key = generate_key()
    await DeviceListService(fleet.database, fleet.clock).add(
        "line", [("meter-1", spki_fingerprint(key.public_key()).hex())], by="admin"
    )
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    asked: list[tuple[str, ...]] = []

    async def ask(question: Question) -> Verdict:
        asked.append(question.evidence)
        return Verdict(question, allowed=False)

    fleet.enrolment.service._ask = ask
    await pending(fleet, "meter-1", key=key, token=token)
    assert asked == [("token",), ("token", "listed key"), ("listed key",)]


async def test_who_is_let_in_without_the_webhook_is_not_asked_about(fleet: Fleet) -> None:
    await group(fleet, "token+webhook", "token+listed", webhook_url="http://127.0.0.1:1/")
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    assert await refusal(fleet, "meter-1", token=token) is Code.WEBHOOK_FAILED, "nobody asks it here"
    await DeviceListService(fleet.database, fleet.clock).add("line", [("meter-1", None)], by="admin")
    await enrol(fleet, "meter-1", token=token)


async def test_the_webhook_is_asked_about_nobody_who_knows_a_name_only(fleet: Fleet) -> None:
    await group(fleet, "listed+webhook", webhook_url="http://127.0.0.1:1/")
    key = generate_key()
    listed = [("meter-1", None), ("meter-2", spki_fingerprint(key.public_key()).hex())]
    await DeviceListService(fleet.database, fleet.clock).add("line", listed, by="admin")
    asked: list[str] = []

    async def ask(question: Question) -> Verdict:
        asked.append(question.device)
        return Verdict(question, allowed=True)

    fleet.enrolment.service._ask = ask
    assert await refusal(fleet, "meter-1", label="line") is Code.WAY_REFUSED
    await enrol(fleet, "meter-2", key=key, label="line")
    assert asked == ["meter-2"]


async def test_what_ends_while_the_webhook_is_asked_has_ended(fleet: Fleet) -> None:
    await group(fleet, "token+webhook", webhook_url="http://127.0.0.1:1/")

    async def slow(question: Question) -> Verdict:
        fleet.clock.advance(2 * HOUR)
        return Verdict(question, allowed=True)

    fleet.enrolment.service._ask = slow
    token = TokenCredential("meter-1", await fleet.token("meter-1", "line"))
    assert await refusal(fleet, "meter-1", token=token) is Code.TOKEN_EXPIRED


def test_ways_are_put_in_order_and_a_webhook_never_stands_alone() -> None:
    (alternative,) = parse_ways(["webhook+approval+claim"])
    assert list(alternative) == ["claim", "approval", "webhook"]
    with pytest.raises(Refused, match="may veto but not admit"):
        parse_ways(["webhook"])


@pytest.mark.parametrize(
    "url", ["http://example.org/", "http://localhost/", "ftp://127.0.0.1/", "https://a:b@example.org/", "https://", "x"]
)
async def test_a_webhook_is_on_this_machine_or_behind_https(fleet: Fleet, url: str) -> None:
    with pytest.raises(Refused, match="INVALID_REQUEST: webhook_url"):
        await group(fleet, "token+webhook", webhook_url=url)


async def test_a_webhook_way_needs_a_url(fleet: Fleet) -> None:
    with pytest.raises(Refused, match="webhook_url is missing"):
        await group(fleet, "token+webhook")
