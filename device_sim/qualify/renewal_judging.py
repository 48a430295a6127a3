"""How a device renews its certificate, and what it does with the answer.

Rules
-----
1. No I/O and no clock.
2. A device that is given where to renew, and never asks, fails: its certificate ends. One that is not told is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from device_sim.attack.verdict import Verdict
from device_sim.qualify.attempt import Attempt
from device_sim.qualify.enrolment_stand import Asked
from device_sim.qualify.judging import SENDS_NOTHING, Line, line_of, skipped

_EARLY = 0.1


def renews(asked: Sequence[Asked], retry_after: int, *, given: bool, came: bool) -> list[Line]:
    """Judge a device whose certificate is about to expire; its first request may have been deferred.

    *given*: it was told where to renew; *came*: it, or anybody, has connected there.
    """
    right = "asks for its next certificate"
    enrolments = [each for each in asked if each.path.endswith(("/simpleenroll", "/simplereenroll"))]
    if not enrolments and given:
        seen = "it connected, and asked for nothing" if came else "it never asked"
        why = "its certificate was about to expire: it will be off the air until somebody goes there"
        return [Line("renews", right, Verdict.FAIL, seen, why)]
    if not enrolments:
        return [skipped("renews", right, "it never asked the enrolment service; give its command {est_url}")]
    done = [each for each in enrolments if each.status is HTTPStatus.OK]
    lines = [
        line_of(
            "renews", right, good=bool(done), seen=f"{len(enrolments)} requests",
            why="it was not there when the certificate was to be had",
        ),
        line_of(
            "renews-as-itself", "shows the certificate that it renews", good=enrolments[0].certificate,
            seen="with certificate" if enrolments[0].certificate else "without", why="the service must refuse it",
            otherwise=Verdict.WARN,
        ),
    ]  # fmt: skip
    if retry_after and len(enrolments) > 1:
        waited = enrolments[1].at - enrolments[0].at
        lines.append(
            line_of(
                "respects-retry-after", f"waits {retry_after} s", good=waited >= retry_after - _EARLY,
                seen=f"{waited:.1f} s", why="it was told when to come again",
            )
        )  # fmt: skip
    return lines


def trusts_no_other_service(asked: Sequence[Asked], came: bool) -> list[Line]:
    """Judge a device whose enrolment service is an impostor."""
    right = "refuses the service and sends it nothing"
    if asked:
        return [Line(SENDS_NOTHING, right, Verdict.FAIL, "sent a request", f"{len(asked)} requests")]
    if not came:
        return [skipped(SENDS_NOTHING, right, "it never asked the enrolment service; give its command {est_url}")]
    return [Line(SENDS_NOTHING, right, Verdict.PASS, "nothing sent")]


def uses_the_new_one(attempts: Sequence[Attempt], asked: Sequence[Asked]) -> list[Line]:
    """Judge whether a device that was given its next certificate presents that when it connects again."""
    right = "presents its new certificate from then on"
    given = [each for each in asked if each.serial is not None]
    if not given:
        return []
    later = [attempt for attempt in attempts if attempt.at > given[0].at and attempt.tls is not None]
    if not later:
        return [skipped("uses-the-new-one", right, "it has not connected since; give a longer --window")]
    last = later[-1]
    good = last.serial in {each.serial for each in given}
    seen = "the new one" if good else "the old one" if last.certificate else "none"
    why = "the old one ends, and it is put out"
    return [line_of("uses-the-new-one", right, good=good, seen=seen, why=why)]


def keeps_the_old_one(attempts: Sequence[Attempt], asked: Sequence[Asked], ending: str) -> list[Line]:
    """Judge a device that was answered with a certificate for a key that it does not have."""
    right = "does not replace its certificate by one that is not for its key"
    given = [each for each in asked if each.serial is not None]
    if not given:
        return [skipped("keeps-the-old-one", right, "it never asked the enrolment service; give its command {est_url}")]
    later = [attempt for attempt in attempts if attempt.at > given[0].at and attempt.tls is not None]
    if ending:
        return [Line("keeps-the-old-one", right, Verdict.FAIL, "it ended", ending)]
    if not later:
        why = "its credential is useless: it is off the air until somebody goes there"
        return [Line("keeps-the-old-one", right, Verdict.FAIL, "it did not connect again", why)]
    good = later[-1].certificate
    seen, why = "the old one" if good else "no certificate", "a broker that asks for one refuses it"
    return [line_of("keeps-the-old-one", right, good=good, seen=seen, why=why)]
