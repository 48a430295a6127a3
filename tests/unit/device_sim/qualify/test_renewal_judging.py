"""The verdict on a device that was given a certificate: its next one, or one that is not for its key."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from device_sim.attack.verdict import Verdict
from device_sim.qualify import renewal_judging
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.enrolment_stand import Asked
from device_sim.qualify.judging import Line

PASS, FAIL, SKIP = Verdict.PASS, Verdict.FAIL, Verdict.SKIP
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
        ([shown(0, 1), shown(2, 1)], "it ended with status 1", FAIL),
    ],
)
def test_a_useless_certificate_is_not_installed(attempts: list[Attempt], ending: str, expected: Verdict) -> None:
    assert verdict(renewal_judging.keeps_the_old_one(attempts, GIVEN, ending, given=True)) is expected


def test_who_is_told_where_to_renew_and_never_asks_fails() -> None:
    assert verdict(renewal_judging.renews([], 0, given=True, came=False)) is FAIL
    assert verdict(renewal_judging.renews([], 0, given=False, came=False)) is SKIP
    assert verdict(renewal_judging.keeps_the_old_one([], [], "", given=True)) is SKIP
