"""The verdict on a device that was given a certificate: its next one, or one that is not for its key."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from device_sim.attack.verdict import Verdict
from device_sim.qualify import renewal_judging
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.client_hello import ClientHello
from device_sim.qualify.enrolment_stand import Arrival, Asked
from device_sim.qualify.judging import Line
from device_sim.qualify.starvation import Waited, on_this_machine

PASS, WARN, FAIL, SKIP, INVALID = Verdict.PASS, Verdict.WARN, Verdict.FAIL, Verdict.SKIP, Verdict.INVALID
STARVED = Waited(8.0, 20.0)
GIVEN = [Asked(1.0, "/.well-known/est/simplereenroll", certificate=True, status=HTTPStatus.OK, serial=7)]


def shown(at: float, serial: int | None) -> Attempt:
    return Attempt(at, tls=at, certificate=serial is not None, serial=serial)


def verdict(lines: list[Line]) -> Verdict:
    (line,) = lines
    return line.verdict


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([shown(0, 1), shown(2, 7)], PASS),
        ([shown(0, 1), shown(1.1, 1), shown(2, 7)], PASS),  # It was connecting already.
        ([shown(0, 1), shown(2, 1)], FAIL),
        ([shown(0, 1), shown(2, None)], FAIL),
        ([shown(0, 1)], SKIP),
        ([shown(0, 1), Attempt(2, refusal="closed")], SKIP),  # It has not got as far as to show anything.
    ],
)
def test_the_new_certificate_is_used(attempts: list[Attempt], expected: Verdict) -> None:
    assert verdict(renewal_judging.uses_the_new_one(attempts, GIVEN)) is expected


def test_without_a_new_certificate_there_is_nothing_to_use() -> None:
    assert renewal_judging.uses_the_new_one([shown(0, 1)], []) == []


@pytest.mark.parametrize(
    ("attempts", "ending", "expected"),
    [
        ([shown(0, 1), shown(2, 1)], "", PASS),
        ([shown(0, 1), shown(2, None)], "", FAIL),
        ([shown(0, 1)], "", FAIL),
        ([], "", FAIL),  # It went for its next certificate before anything else.
        ([shown(0, 1), Attempt(2, refusal="closed")], "", FAIL),
        ([shown(0, 1), shown(2, 1), Attempt(3, refusal="closed")], "", PASS),  # Nothing is known of the last one.
        ([shown(0, 1), shown(2, 1)], "it ended with status 1", FAIL),
    ],
)
def test_a_useless_certificate_is_not_installed(attempts: list[Attempt], ending: str, expected: Verdict) -> None:
    assert verdict(renewal_judging.keeps_the_old_one(attempts, GIVEN, 20.0, ending, given=True)) is expected


@pytest.mark.parametrize(("window", "expected"), [(10.5, SKIP), (11.5, FAIL)])
def test_who_was_answered_late_had_no_time_to_return(window: float, expected: Verdict) -> None:
    """It was answered after a second; ten are enough to come again."""
    assert [each.at for each in GIVEN] == [1.0]
    assert verdict(renewal_judging.keeps_the_old_one([shown(0, 1)], GIVEN, window, "", given=True)) is expected


def test_who_ends_where_all_is_well_too_has_not_ended_because_of_its_certificate() -> None:
    ended = [shown(0, 1)], GIVEN, 20.0, "it ended with status 0, and said nothing"
    assert verdict(renewal_judging.keeps_the_old_one(*ended, given=True, leaves=True)) is SKIP
    assert verdict(renewal_judging.keeps_the_old_one(*ended, given=True)) is FAIL
    (unknown,) = renewal_judging.keeps_the_old_one(*ended, given=True, leaves=None)
    assert (unknown.verdict, unknown.why.endswith("--only good,renew-other-key")) == (SKIP, True)


def test_who_is_told_where_to_renew_and_never_asks_fails() -> None:
    assert verdict(renewal_judging.renews([], 0, given=True, came=False)) is FAIL
    assert verdict(renewal_judging.renews([], 0, given=False, came=False)) is SKIP
    assert verdict(renewal_judging.keeps_the_old_one([], [], 20.0, "", given=True)) is SKIP


def asked(at: float, status: HTTPStatus, path: str = "simplereenroll", *, certificate: bool = True) -> Asked:
    serial = 7 if status is HTTPStatus.OK and path == "simplereenroll" else None
    return Asked(at, f"/.well-known/est/{path}", certificate=certificate, status=status, serial=serial)


def test_what_was_put_off_is_no_certificate_that_could_be_used_or_kept() -> None:
    later = [asked(1.0, HTTPStatus.ACCEPTED), asked(3.0, HTTPStatus.OK)]
    before, after = [shown(0, 1), shown(2, 1)], [shown(0, 1), shown(2, 1), shown(4, 7)]
    assert verdict(renewal_judging.uses_the_new_one(before, later)) is SKIP
    assert verdict(renewal_judging.uses_the_new_one(after, later)) is PASS
    assert renewal_judging.uses_the_new_one(before, later[:1]) == []
    assert verdict(renewal_judging.keeps_the_old_one(before, later[:1], 20.0, "", given=True)) is SKIP


def test_who_asks_for_other_things_has_not_asked_for_a_certificate() -> None:
    fetched = [asked(1.0, HTTPStatus.OK, "cacerts"), asked(1.1, HTTPStatus.NOT_FOUND, "csrattrs")]
    assert verdict(renewal_judging.renews(fetched, 2, given=True, came=True)) is FAIL
    enrolled = [*fetched, asked(1.2, HTTPStatus.ACCEPTED), asked(3.3, HTTPStatus.OK)]
    lines = renewal_judging.renews(enrolled, 2, given=True, came=True)
    assert [line.verdict for line in lines] == [PASS, PASS, PASS]


def test_who_has_the_server_make_its_keys_is_not_told_that_it_asked_for_nothing() -> None:
    """Our own service does so (RFC 7030 §4.4); this stand does not."""
    others = [asked(1.0, HTTPStatus.OK, "cacerts"), asked(1.1, HTTPStatus.NOT_FOUND, "serverkeygen")]
    for lines in (
        renewal_judging.renews(others, 0, given=True, came=True),
        renewal_judging.keeps_the_old_one([shown(0, 1)], others, 20.0, "", given=True),
    ):
        assert verdict(lines) is SKIP
        assert lines[0].why == "it has the server make its key, which is not tested"
    (line,) = renewal_judging.renews(others[:1], 0, given=True, came=True)
    assert (line.verdict, line.seen) == (FAIL, "it connected, and asked for no certificate")
    both = [*others, asked(2.0, HTTPStatus.OK)]
    assert renewal_judging.renews(both, 0, given=True, came=True)[0].verdict is PASS


@pytest.mark.parametrize(
    ("first", "second", "expected"), [(100.0, 100.5, FAIL), (100.0, 101.85, FAIL), (100.0, 101.95, PASS)]
)
def test_what_was_waited_is_between_two_requests(first: float, second: float, expected: Verdict) -> None:
    requests = [asked(first, HTTPStatus.ACCEPTED), asked(second, HTTPStatus.OK)]
    *_, line = renewal_judging.renews(requests, 2, given=True, came=True)
    assert (line.name, line.verdict) == ("respects-retry-after", expected)


def test_a_second_request_that_nobody_put_off_need_not_wait() -> None:
    lines = renewal_judging.renews([asked(1.0, HTTPStatus.OK), asked(1.1, HTTPStatus.OK)], 0, given=True, came=True)
    assert {line.name for line in lines} == {"renews", "renews-as-itself"}


def test_the_first_request_must_show_the_certificate_that_it_renews() -> None:
    requests = [asked(0, HTTPStatus.ACCEPTED, certificate=False), asked(3.0, HTTPStatus.OK)]
    line = renewal_judging.renews(requests, 2, given=True, came=True)[1]
    assert (line.name, line.verdict, line.seen) == ("renews-as-itself", WARN, "without")


def arrival(*, asks: bool | None = None, sent_data: bool = False) -> Arrival:
    return Arrival(None if asks is None else ClientHello(0x0304, asks), sent_data)


@pytest.mark.parametrize(
    ("arrivals", "given", "expected"),
    [
        ([], True, SKIP),
        ([], False, SKIP),
        ([arrival(asks=False)], True, PASS),
        ([arrival(asks=False), arrival(asks=False, sent_data=True)], True, FAIL),
        ([arrival(sent_data=True)], True, FAIL),
        ([arrival()], True, SKIP),  # It has only tried the port.
    ],
)
def test_a_strange_service_gets_nothing(arrivals: list[Arrival], given: bool, expected: Verdict) -> None:
    assert verdict(renewal_judging.trusts_no_other_service(arrivals, given=given)) is expected


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        ([], SKIP),
        ([arrival()], SKIP),
        ([arrival(asks=False, sent_data=True)], SKIP),
        ([arrival(), arrival(asks=False)], SKIP),
        ([arrival(asks=True)], PASS),
        ([arrival(), arrival(asks=True)], PASS),
        ([arrival(asks=True, sent_data=True)], FAIL),
        # It asks once, and then no more.
        ([arrival(asks=True), arrival(asks=False, sent_data=True)], FAIL),
        ([arrival(asks=False), Arrival(None, sent_data=True, in_clear=True)], FAIL),
    ],
)
def test_who_asks_the_service_for_a_staple_must_check_it(arrivals: list[Arrival], expected: Verdict) -> None:
    assert verdict(renewal_judging.checks_service_staple(arrivals, given=True)) is expected


@pytest.mark.parametrize(
    "lines",
    [
        renewal_judging.keeps_the_old_one([], [], 20.0, "", given=True),
        renewal_judging.renews([asked(0, HTTPStatus.ACCEPTED)], 2, given=True, came=True),
        renewal_judging.renews([asked(0, HTTPStatus.ACCEPTED), asked(0.5, HTTPStatus.OK)], 2, given=True, came=True)[
            2:
        ],
        renewal_judging.uses_the_new_one([shown(0, 1), shown(2, 1)], GIVEN),
        renewal_judging.keeps_the_old_one([shown(0, 1)], GIVEN, 20.0, "", given=True),
        renewal_judging.trusts_no_other_service([arrival(asks=True)], given=True),
        renewal_judging.checks_service_staple([arrival()], given=True),
    ],
)
def test_a_renewal_that_came_late_is_no_verdict_on_a_starved_machine(lines: list[Line]) -> None:
    assert on_this_machine(lines[0], STARVED).verdict is INVALID
    assert on_this_machine(lines[0], Waited(0.5, 20.0)).verdict is lines[0].verdict


def test_who_used_the_old_one_for_longer_than_others_held_the_machine_fails() -> None:
    (line,) = renewal_judging.uses_the_new_one([shown(0, 1), shown(12, 1)], GIVEN)
    assert on_this_machine(line, STARVED).verdict is FAIL


@pytest.mark.parametrize(
    "lines",
    [
        renewal_judging.keeps_the_old_one([], [], 20.0, "", given=False),
        renewal_judging.trusts_no_other_service([], given=False),
        renewal_judging.trusts_no_other_service([arrival(sent_data=True)], given=True),
        renewal_judging.checks_service_staple([arrival(asks=False)], given=True),
    ],
)
def test_who_was_not_told_of_a_service_or_believed_it_did_so_on_any_machine(lines: list[Line]) -> None:
    assert on_this_machine(lines[0], STARVED).verdict is lines[0].verdict


def test_a_wait_for_a_core_of_known_length_would_explain_what_came_late() -> None:
    (used,) = renewal_judging.uses_the_new_one([shown(0, 1), shown(3.5, 1)], GIVEN)
    assert (used.verdict, used.seen, used.by_time) == (FAIL, "the old one", 2.5)
    (without,) = renewal_judging.uses_the_new_one([shown(0, 1), shown(3.5, None)], GIVEN)
    assert (without.verdict, without.seen) == (FAIL, "none")
    for again, verdict_due, off in ((2.5, PASS, 0.6), (1.9, PASS, 0.0), (1.0, FAIL, 0.9)):
        requests = [asked(0.0, HTTPStatus.ACCEPTED), asked(again, HTTPStatus.OK)]
        line = renewal_judging.renews(requests, 2, given=True, came=True)[-1]
        assert (line.name, line.verdict) == ("respects-retry-after", verdict_due)
        assert line.by_time == pytest.approx(off)
    (never,) = renewal_judging.renews([], 0, given=True, came=True)
    assert (never.verdict, never.by_time) == (FAIL, 0.0), "no number says how late"
    late = renewal_judging.renews([asked(0.0, HTTPStatus.ACCEPTED)], 2, given=True, came=True)[0]
    assert (late.verdict, late.by_time) == (FAIL, 0.0)
