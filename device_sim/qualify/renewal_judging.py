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
from device_sim.qualify.enrolment_stand import Arrival, Asked
from device_sim.qualify.judging import LEAVES, MAY_LEAVE, NEVER_ASKS, SENDS_NOTHING, Line, line_of, missed, skipped

_EARLY = 0.1
_TO_RETURN = 10.0
"""Seconds for a device whose connection was broken a second after its answer to come again."""
_NO_HELLO = "no ClientHello came whole; give a longer --window"
_SERVER_KEYS = "it has the server make its key, which is not tested"
_REFUSES = "refuses the service and sends it nothing"


def renews(asked: Sequence[Asked], retry_after: int, *, given: bool, came: bool) -> list[Line]:
    """Judge a device whose certificate is about to expire; its first request may have been deferred.

    *given*: it was told where to renew; *came*: it, or anybody, has connected there.
    """
    right = "asks for its next certificate"
    enrolments = [each for each in asked if each.enrols]
    if not enrolments and _asks_for_keys(asked):
        return [skipped("renews", right, _SERVER_KEYS)]
    if not enrolments and given:
        seen = "it connected, and asked for no certificate" if came else "it never asked"
        why = "its certificate was about to expire: it will be off the air until somebody goes there"
        return [Line("renews", right, Verdict.FAIL, seen, why, by_time=0.0)]
    if not enrolments:
        return [_never_asked("renews", right, given=False)]
    done = [each for each in enrolments if each.status is HTTPStatus.OK]
    lines = [
        line_of(
            "renews", right, good=bool(done), seen=f"{len(enrolments)} requests",
            why="it was not there when the certificate was to be had", late=0.0,
        ),
        line_of(
            "renews-as-itself", "shows the certificate that it renews", good=enrolments[0].certificate,
            seen="with certificate" if enrolments[0].certificate else "without", why="the service must refuse it",
            otherwise=Verdict.WARN,
        ),
    ]  # fmt: skip
    if retry_after and len(enrolments) > 1:
        waited = enrolments[1].at - enrolments[0].at
        # Whichever of the two came late: a wait would explain it.
        off = abs(waited - (retry_after - _EARLY))
        lines.append(
            line_of(
                "respects-retry-after", f"waits {retry_after} s", good=waited >= retry_after - _EARLY,
                seen=f"{waited:.1f} s", why="it was told when to come again", lucky=off, late=off,
            )
        )  # fmt: skip
    return lines


def _asks_for_keys(asked: Sequence[Asked]) -> bool:
    return any(each.path.endswith("/serverkeygen") for each in asked)


def _never_asked(name: str, right: str, *, given: bool) -> Line:
    """Return the line about a device that never asked; with more time it might have, if it is *given* where."""
    if given:
        return missed(name, right, "it never asked the enrolment service; give a longer --window")
    return skipped(name, right, "it never asked the enrolment service; give its command {est_url}")


def trusts_no_other_service(arrivals: Sequence[Arrival], *, given: bool) -> list[Line]:
    """Judge a device whose enrolment service is an impostor."""
    if not arrivals:
        return [_never_asked(SENDS_NOTHING, _REFUSES, given=given)]
    if not any(arrival.hello is not None or arrival.sent_data for arrival in arrivals):
        return [missed(SENDS_NOTHING, _REFUSES, _NO_HELLO)]
    believed = sum(arrival.sent_data for arrival in arrivals)
    if believed:
        why = f"in {believed} of {len(arrivals)} connections"
        return [Line(SENDS_NOTHING, _REFUSES, Verdict.FAIL, "sent a request", why)]
    return [Line(SENDS_NOTHING, _REFUSES, Verdict.PASS, "nothing sent", by_time=0.0)]


def checks_service_staple(arrivals: Sequence[Arrival], *, given: bool) -> list[Line]:
    """Judge a device whose enrolment service has the wrong staple, or none where one is due: as `checks_staple`."""
    hellos = [arrival.hello for arrival in arrivals if arrival.hello is not None]
    clear = any(arrival.in_clear for arrival in arrivals)
    if hellos and not clear and not any(hello.asks_for_staple for hello in hellos):
        return [skipped(SENDS_NOTHING, _REFUSES, NEVER_ASKS)]
    return trusts_no_other_service(arrivals, given=given)


def uses_the_new_one(attempts: Sequence[Attempt], asked: Sequence[Asked]) -> list[Line]:
    """Judge whether a device that was given its next certificate presents that when it connects again."""
    right = "presents its new certificate from then on"
    given = [each for each in asked if each.serial is not None]
    if not given:
        return []
    later = [attempt for attempt in attempts if attempt.at > given[0].at and attempt.tls is not None]
    if not later:
        return [missed("uses-the-new-one", right, "it has not connected since; give a longer --window")]
    last = later[-1]
    good = last.serial in {each.serial for each in given}
    seen = "the new one" if good else "the old one" if last.certificate else "none"
    why = "the old one ends, and it is put out"
    had = last.at - given[0].at
    return [line_of("uses-the-new-one", right, good=good, seen=seen, why=why, late=had)]


def keeps_the_old_one(
    attempts: Sequence[Attempt], asked: Sequence[Asked], window: float, ending: str, *, given: bool,
    leaves: bool | None = False,
) -> list[Line]:  # fmt: skip
    """Judge a device that was answered with a certificate for a key that it does not have.

    It was watched for *window* seconds from its first connection; *ending* is how it ended by itself. *leaves*: it
    leaves, or ends, where all is well, too; None: perhaps.
    """
    right = "does not replace its certificate by one that is not for its key"
    issued = [each for each in asked if each.serial is not None]
    if not issued and _asks_for_keys(asked):
        return [skipped("keeps-the-old-one", right, _SERVER_KEYS)]
    if not issued:
        return [_never_asked("keeps-the-old-one", right, given=given)]
    later = [attempt for attempt in attempts if attempt.at > issued[0].at and attempt.tls is not None]
    if ending and leaves is not False:
        return [skipped("keeps-the-old-one", right, LEAVES if leaves else f"{MAY_LEAVE}renew-other-key")]
    if ending:
        return [Line("keeps-the-old-one", right, Verdict.FAIL, "it ended", ending)]
    watched = min([issued[0].at, *(attempt.at for attempt in attempts)]) + window - issued[0].at
    if not later and watched < _TO_RETURN:
        return [missed("keeps-the-old-one", right, "it has not connected since; give a longer --window")]
    if not later:
        why = "its credential is useless: it is off the air until somebody goes there"
        return [Line("keeps-the-old-one", right, Verdict.FAIL, "it did not connect again", why, by_time=0.0)]
    good = later[-1].certificate
    seen, why = "the old one" if good else "no certificate", "a broker that asks for one refuses it"
    return [line_of("keeps-the-old-one", right, good=good, seen=seen, why=why)]
