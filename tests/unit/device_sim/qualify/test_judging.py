"""The verdict on a device, from attempts as the stand records them."""

from __future__ import annotations

from dataclasses import replace
from http import HTTPStatus

import pytest

from broker.mqtt.codes import ProtocolVersion, QoS
from broker.mqtt.connect import Connect
from broker.mqtt.packets import Connack, Disconnect, Publish
from broker.mqtt.properties import Properties
from device_sim.attack.verdict import Verdict
from device_sim.qualify import judging, renewal_judging
from device_sim.qualify.attempt import Attempt, Failures, pauses
from device_sim.qualify.enrolment_stand import Asked
from device_sim.qualify.qualifying import exit_code
from device_sim.qualify.run import _outcome
from device_sim.report import ExitCode

PASS, WARN, FAIL, SKIP = Verdict.PASS, Verdict.WARN, Verdict.FAIL, Verdict.SKIP


def connect(*, keep_alive: int = 5, clean: bool = False) -> Connect:
    return Connect("d", keep_alive=keep_alive, clean_start=clean, protocol_version=ProtocolVersion.V311)


def attempt(at: float = 0.0, ended: float | None = None, refusal: str = "", **more: object) -> Attempt:
    made = Attempt(at, refusal=refusal, ended=ended, offered=0x0304 if refusal else None)
    made.alert = refusal not in {"", "closed"}
    for name, value in more.items():
        setattr(made, name, value)
    return made


def believing(at: float = 0.0, ended: float | None = None, **fields: object) -> Attempt:
    return attempt(at, ended, tls=at, packets=[(at, connect(**fields))])  # type: ignore[arg-type]


def row(*waits: float) -> list[Attempt]:
    """Return attempts that are broken at once, with these waits between them."""
    attempts, now = [attempt(0.0, 0.0, by_device=False)], 0.0
    for wait in waits:
        now += wait
        attempts.append(attempt(now, now, by_device=False))
    return attempts


def verdicts(lines: list[judging.Line]) -> dict[str, Verdict]:
    return {line.name: line.verdict for line in lines}


def test_pauses_are_from_the_end_of_one_to_the_start_of_the_next() -> None:
    assert pauses([attempt(0, 1), attempt(3, 3.5), attempt(3.2, 4), attempt(5)]) == [2, 0, 1]
    assert pauses([attempt(0), attempt(3, 4), attempt(6)]) == [0, 2]


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([attempt(refusal="certificate_expired")], {"sends-nothing": PASS, "says-why": PASS}),
        ([attempt(refusal="closed")], {"sends-nothing": PASS, "says-why": WARN}),
        ([attempt(tls=0.1)], {"sends-nothing": PASS, "says-why": WARN}),
        ([attempt(refusal="unknown_ca"), believing()], {"sends-nothing": FAIL}),
        ([attempt(tls=0.1), attempt(refusal="unknown_ca")], {"sends-nothing": PASS, "says-why": WARN}),
        ([attempt(refusal="unknown_ca"), attempt()], {"sends-nothing": PASS, "says-why": PASS}),
        ([attempt(tls=0.1, noise="bad packet")], {"sends-nothing": FAIL}),
        ([attempt(refusal="unknown_ca"), attempt(in_clear=True)], {"sends-nothing": FAIL}),
        ([attempt(refusal="closed", offered=None)], {"sends-nothing": SKIP}),  # It has only tried the port.
        ([attempt(ended=0.1, offered=0x0304)], {"sends-nothing": PASS, "says-why": WARN}),
        # The stand itself has said so, and the device nothing.
        ([attempt(refusal="no_shared_cipher", alert=False)], {"sends-nothing": PASS, "says-why": SKIP}),
        (
            [attempt(refusal="no_shared_cipher", alert=False), attempt(refusal="unknown_ca")],
            {"sends-nothing": PASS, "says-why": PASS},
        ),
        ([attempt(ended=0.1), attempt(1.0, offered=0x0304)], {"sends-nothing": SKIP}),
        ([], {"sends-nothing": SKIP}),
    ],
)
def test_a_device_must_not_send_to_a_server_that_it_cannot_know(
    attempts: list[Attempt], expected: dict[str, Verdict]
) -> None:
    assert verdicts(judging.verifies(attempts)) == expected


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([], {"sends-nothing": SKIP}),
        ([attempt()], {"sends-nothing": SKIP}),
        ([attempt(), attempt(asks_for_staple=False)], {"sends-nothing": SKIP}),
        ([attempt(asks_for_staple=False, tls=0.1), believing()], {"sends-nothing": SKIP}),
        ([attempt(asks_for_staple=True, refusal="bad_certificate_status_response")],
         {"sends-nothing": PASS, "says-why": PASS}),
        ([attempt(asks_for_staple=True, tls=0.1, ended=0.2)], {"sends-nothing": PASS, "says-why": WARN}),
        ([attempt(asks_for_staple=False), attempt(in_clear=True)], {"sends-nothing": FAIL}),
        ([attempt(asks_for_staple=True, tls=0.1, packets=[(0.1, connect())])], {"sends-nothing": FAIL}),
        # It asks once, and then no more.
        ([attempt(asks_for_staple=True, refusal="closed"), attempt(asks_for_staple=False, packets=[(0.1, connect())])],
         {"sends-nothing": FAIL}),
    ],
)  # fmt: skip
def test_who_asks_for_a_staple_must_check_it(attempts: list[Attempt], expected: dict[str, Verdict]) -> None:
    assert verdicts(judging.checks_staple(attempts)) == expected


def test_old_tls_is_taken_or_not() -> None:
    assert verdicts(judging.refuses_old_tls([attempt(refusal="protocol_version")])) == {"sends-nothing": PASS}
    assert verdicts(judging.refuses_old_tls([attempt(tls=0.1)])) == {"sends-nothing": FAIL}
    assert verdicts(judging.refuses_old_tls([attempt(refusal="protocol_version"), attempt()])) == {
        "sends-nothing": PASS
    }
    assert verdicts(judging.refuses_old_tls([attempt(refusal="protocol_version"), attempt(in_clear=True)])) == {
        "sends-nothing": FAIL
    }
    assert verdicts(judging.refuses_old_tls([attempt(refusal="closed", offered=None)])) == {"sends-nothing": SKIP}


@pytest.mark.parametrize(
    ("attempts", "status", "expected", "words"),
    [
        (row(1.0, 2.0, 4.0), None, PASS, "4 attempts, waits of 1.00, 2.00, 4.00 s"),
        (row(0.01, 0.02, 1.3, 0.02), None, FAIL, "all waits but one are 20 ms at most"),
        (row(0.04, 0.09, 1.3, 0.03, 0.7), None, PASS, "6 attempts"),
        (row(0.01, 0.02), None, PASS, "3 attempts"),
        (row(0.4, 0.8), 1, WARN, "it ended with status 1: it gave up"),
        (row(0.01, 0.02, 0.01, 0.02), 1, FAIL, "it hammers"),
        (row(*[0.02] * 8, 0.3, 0.5), None, FAIL, "all waits but 2 are 20 ms at most"),
        (row(*[0.02] * 7, 0.3, 0.4, 0.5), None, PASS, "11 attempts"),
        (row(), 14, WARN, "it ended with status 14"),
        (row(), -13, WARN, "it ended by SIGPIPE"),
        ([attempt(0)], None, WARN, "does it ever give up?"),
        (row(), None, SKIP, "give a longer --window"),
        ([], None, SKIP, "it did not come"),
    ],
)
def test_how_it_comes_back(attempts: list[Attempt], status: int | None, expected: Verdict, words: str) -> None:
    (line,) = judging.comes_back(attempts, status, 6.0)
    assert line.verdict is expected
    assert words in f"{line.seen} {line.why}"


@pytest.mark.parametrize(
    ("sequences", "grow", "scatter"),
    [
        ([[0.4, 1.0, 2.0, 5.0], [0.1, 0.5, 3.0], [0.6, 0.9, 1.0], [0.3, 1.5, 2.5]], PASS, PASS),
        ([[1.0, 2.0, 4.0]] * 5, PASS, WARN),
        ([[1.0, 1.0, 1.0]] * 5, WARN, WARN),
        ([[1.0, 1.0]] * 3, SKIP, SKIP),
        ([[1.0, 1.1, 2.0], *[[0.5, 0.4]] * 4], SKIP, PASS),  # Few later ones, or few first ones.
        ([[1.0, *[2.0] * 8]], SKIP, SKIP),
        ([[], [1.0, 1.0, 2.0], [1.5, 1.0, 2.5], [0.5, 1.0, 1.5], [1.0, 2.0, 3.0]], PASS, PASS),
        ([[0.0, 0.0, 1.0]] * 4, PASS, WARN),
        ([[0.5, 2.0, 2.0, 2.0]] * 4, PASS, WARN),
        ([], SKIP, SKIP),
    ],
)
def test_waits_are_judged_over_all_stages(sequences: list[list[float]], grow: Verdict, scatter: Verdict) -> None:
    assert verdicts(judging.waits(sequences)) == {"waits-grow": grow, "waits-scatter": scatter}


@pytest.mark.parametrize(
    ("keep_alive", "ended", "attempts", "expected"),
    [
        (1, 3.0, 2, {"notices": PASS, "comes-again": PASS}),
        (1, 3.0, 1, {"notices": PASS, "comes-again": WARN}),
        (1, 5.0, 2, {"notices": FAIL, "comes-again": PASS}),
        (1, None, 1, {"notices": FAIL}),
        (0, None, 1, {"notices": FAIL}),
        (0, 9.0, 2, {"notices": PASS, "comes-again": PASS}),  # It has noticed by other means.
        (60, None, 1, {"notices": SKIP}),
    ],
)
def test_a_dead_connection_is_noticed_by_the_keep_alive(
    keep_alive: int, ended: float | None, attempts: int, expected: dict[str, Verdict]
) -> None:
    first = believing(100.0, None if ended is None else 100.0 + ended, keep_alive=keep_alive)
    first.answered = 100.0
    found = judging.notices_silence([first, *[attempt(109.0)] * (attempts - 1)], window=10.0)
    assert verdicts(found) == expected


def served(at: float) -> Attempt:
    made = believing(at)
    made.answered = at
    return made


def left(at: float) -> Attempt:
    made = served(at)
    made.ended = at + 0.5
    return made


def sender(at: float, payload: bytes, *, dup: bool, packet_id: int = 1, clean: bool = False) -> Attempt:
    made = believing(at, clean=clean)
    made.answered, made.sent = at, [Connack(session_present=not clean)]
    made.packets.append((at, Publish("t", payload, QoS.AT_LEAST_ONCE, dup=dup, packet_id=packet_id)))
    return made


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [
        ([sender(0, b"a", dup=False), sender(1, b"a", dup=True)], {"resends": PASS, "marks-duplicate": PASS}),
        ([sender(0, b"a", dup=False), sender(1, b"a", dup=False)], {"resends": PASS, "marks-duplicate": FAIL}),
        ([sender(0, b"a", dup=False), sender(1, b"a", dup=True, packet_id=2)],
         {"resends": PASS, "marks-duplicate": FAIL}),
        ([sender(0, b"a", dup=False, clean=True), sender(1, b"a", dup=False, clean=True)],
         {"resends": PASS, "marks-duplicate": SKIP}),
        ([sender(0, b"a", dup=False), sender(1, b"b", dup=False)], {"resends": FAIL}),
        ([sender(0, b"a", dup=False)], {"resends": SKIP}),
        ([sender(0, b"a", dup=False), served(8.0)], {"resends": SKIP}),
        ([sender(0, b"a", dup=False), served(2.0)], {"resends": FAIL}),
        ([sender(0, b"a", dup=False), sender(8.0, b"b", dup=False)], {"resends": FAIL}),  # There was time for another.
        ([sender(0, b"a", dup=False), left(8.0)], {"resends": FAIL}),
        ([sender(0, b"a", dup=False), believing(2.0, 2.1)], {"resends": SKIP}),  # It was not admitted again.
        ([believing()], {"resends": SKIP}),
    ],
)  # fmt: skip
def test_what_was_not_acknowledged_is_sent_again(attempts: list[Attempt], expected: dict[str, Verdict]) -> None:
    assert verdicts(judging.redelivers(attempts, 10.0)) == expected


def test_a_message_is_lost_with_a_device_that_ends() -> None:
    assert verdicts(judging.redelivers([sender(0, b"a", dup=False)], 10.0, "it ended with status 1")) == {
        "resends": FAIL
    }


def asked(at: float, status: HTTPStatus, *, certificate: bool = True) -> Asked:
    return Asked(at, "/.well-known/est/simplereenroll", certificate, status)


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([asked(0, HTTPStatus.SERVICE_UNAVAILABLE), asked(2.0, HTTPStatus.OK)],
         {"renews": PASS, "renews-as-itself": PASS, "respects-retry-after": PASS}),
        ([asked(0, HTTPStatus.ACCEPTED), asked(0.5, HTTPStatus.OK)],
         {"renews": PASS, "renews-as-itself": PASS, "respects-retry-after": FAIL}),
        ([asked(0, HTTPStatus.ACCEPTED, certificate=False)], {"renews": FAIL, "renews-as-itself": WARN}),
        ([], {"renews": SKIP}),
    ],
)  # fmt: skip
def test_renewal_is_patient(requests: list[Asked], expected: dict[str, Verdict]) -> None:
    assert verdicts(renewal_judging.renews(requests, 2, given=False, came=bool(requests))) == expected


def test_a_device_that_never_connects_is_judged_no_further() -> None:
    assert verdicts(judging.habits([])) == {"connects": FAIL}


def test_habits() -> None:
    device = believing(0.0, keep_alive=0)
    device.tls_version, device.certificate, device.answered = "TLSv1.2", False, 0.1
    assert verdicts(judging.habits([device])) == {
        "connects": PASS, "tls": WARN, "certificate": FAIL,
        "keep-alive": WARN, "stays": PASS, "waits-for-connack": PASS, "speaks-mqtt": PASS,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([("server-expired", "sends-nothing", FAIL), ("drop-tcp", "comes-back", FAIL)], ExitCode.SECURITY),
        ([("drop-tcp", "comes-back", FAIL)], ExitCode.ERROR),
        ([("server-revoked-ca", "sends-nothing", WARN)], ExitCode.OK),
        ([("drop-tcp", "comes-back", PASS), ("renew", "renews", SKIP)], ExitCode.OK),
        ([("server-expired", "sends-nothing", SKIP), ("reconnect", "waits-grow", SKIP)], ExitCode.ERROR),
    ],
)
def test_data_for_strangers_is_the_worst(lines: list[tuple[str, str, Verdict]], code: ExitCode) -> None:
    outcomes = [_outcome(stage, "", judging.Line(name, "", verdict, "seen"), 1.0) for stage, name, verdict in lines]
    assert exit_code(outcomes) is code


@pytest.mark.parametrize(
    ("clean", "name", "expected"),
    [(False, "other", FAIL), (True, "other", PASS), (False, "assigned", PASS)],
)
def test_who_was_assigned_a_name_and_keeps_a_session_returns_under_it(
    clean: bool, name: str, expected: Verdict
) -> None:
    lost = Publish("t", b"m", QoS.AT_LEAST_ONCE, packet_id=1)
    told = Connack(properties=Properties(assigned_client_identifier="assigned"))
    kept = Properties(session_expiry_interval=60)
    first = Connect("", clean_start=clean, protocol_version=ProtocolVersion.V5, properties=kept)
    later = Connect(name, clean_start=clean, protocol_version=ProtocolVersion.V5)
    attempts = [
        attempt(0.0, 1.0, tls=0.0, answered=0.1, packets=[(0.0, first), (0.2, lost)], sent=[told]),
        attempt(2.0, tls=2.0, answered=2.1, packets=[(2.0, later), (2.2, replace(lost, dup=True))]),
    ]
    assert verdicts(judging.redelivers(attempts, 10.0))["resends"] is expected


def test_who_keeps_no_session_may_return_under_any_name() -> None:
    """It asks for no clean start, but its session ends with the connection [MQTT-3.1.2-23]."""
    lost = Publish("t", b"m", QoS.AT_LEAST_ONCE, packet_id=1)
    told = Connack(properties=Properties(assigned_client_identifier="assigned"))
    nameless = Connect("", clean_start=False, protocol_version=ProtocolVersion.V5)
    attempts = [
        attempt(0.0, 1.0, tls=0.0, answered=0.1, packets=[(0.0, nameless), (0.2, lost)], sent=[told]),
        attempt(2.0, tls=2.0, answered=2.1, packets=[(2.0, nameless), (2.2, replace(lost, packet_id=7))], sent=[told]),
    ]
    assert verdicts(judging.redelivers(attempts, 10.0)) == {"resends": PASS, "marks-duplicate": SKIP}


def test_a_device_that_never_came_over_a_slow_network_is_not_judged_by_it() -> None:
    assert verdicts(judging.serves_slowly([])) == {"is-served": SKIP}


def test_what_was_never_seen_is_skipped_and_not_passed() -> None:
    assert verdicts(judging.notices_silence([], 20.0)) == {"notices": SKIP}
    assert verdicts(judging.notices_silence([attempt(tls=0.1)], 20.0)) == {"notices": SKIP}
    assert verdicts(judging.keeps_version([])) == {"keeps-version": SKIP}
    assert verdicts(judging.keeps_version([attempt(offered=0x0304)])) == {"keeps-version": SKIP}


def test_who_has_switched_its_keep_alive_off_is_told_that() -> None:
    device = believing(keep_alive=0)
    device.answered = 0.1
    (line,) = judging.notices_silence([device], 20.0)
    assert (line.verdict, line.why) == (FAIL, "its keep alive is off: it will never notice")


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        ((0x0304, 0x0304), PASS),
        ((0x0304, 0x0303), FAIL),
        ((0x0304, 0x0303, 0x0304), FAIL),  # Once is enough for an attacker.
        ((0x0304, None, 0x0303), FAIL),
        ((0x0303, 0x0304, 0x0303), PASS),
    ],
)
def test_no_older_tls_is_offered_after_a_broken_connection(offered: tuple[int | None, ...], expected: Verdict) -> None:
    found = judging.keeps_version([attempt(offered=each) for each in offered])
    assert verdicts(found) == {"keeps-version": expected}


def test_who_leaves_a_good_broker_or_hurries_is_warned() -> None:
    message = Publish("t", b"m", QoS.AT_LEAST_ONCE, packet_id=1)
    good = attempt(tls=0.0, tls_version="TLSv1.3", answered=1.0, certificate=True, packets=[(0.0, connect())])
    hasty = attempt(tls=0.0, answered=1.0, certificate=True, packets=[(0.0, connect()), (0.5, message)])
    found = verdicts(judging.habits([good]))
    assert (found["stays"], found["waits-for-connack"]) == (PASS, PASS)
    assert verdicts(judging.habits([good, good]))["stays"] is WARN
    assert verdicts(judging.habits([hasty]))["waits-for-connack"] is WARN


@pytest.mark.parametrize(("keep_alive", "expected"), [(0, WARN), (1, PASS), (1200, PASS), (1201, WARN)])
def test_a_keep_alive_of_up_to_twenty_minutes_finds_a_dead_connection(keep_alive: int, expected: Verdict) -> None:
    device = believing(keep_alive=keep_alive)
    device.answered = 0.1
    assert verdicts(judging.habits([device]))["keep-alive"] is expected


def test_what_was_sent_to_an_impostor_is_told() -> None:
    said = {
        "it sent CONNECT in 1 of 2 connections": [attempt(refusal="unknown_ca"), believing()],
        "it sent data in 1 of 1 connections": [attempt(tls=0.1, noise="bad packet")],
        "it sent data in 2 of 2 connections, without TLS": [attempt(in_clear=True), attempt(tls=0.1, noise="x")],
    }
    for why, attempts in said.items():
        assert judging.verifies(attempts)[0].why == why
    alerts = [attempt(refusal="unknown_ca"), attempt(refusal="bad_certificate"), attempt(refusal="closed")]
    assert judging.verifies(alerts)[1].seen == "bad_certificate, unknown_ca"
    assert judging.verifies([attempt(refusal="closed")])[1].seen == "no alert"
    for lines in (judging.verifies([]), judging.refuses_old_tls([])):
        assert lines[0].why == "it did not come"


def test_by_how_much_waiting_for_a_core_explains_pauses_is_told() -> None:
    """All but the longest count: what they lack to a tenth of a second, or exceed it by."""
    (hammers,) = judging.comes_back(row(0.01, 0.02, 0.02, 0.01), None, 20.0)
    assert hammers.verdict is FAIL
    assert hammers.by_time == pytest.approx(0.09 + 0.09 + 0.08)
    (pauses_well,) = judging.comes_back(row(0.5, 0.3, 0.4), None, 20.0)
    assert pauses_well.verdict is PASS
    assert pauses_well.by_time == pytest.approx(0.2 + 0.3)
    hasty = attempt(tls=0.0, answered=1.0, packets=[(0.7, connect())])
    line = next(each for each in judging.habits([hasty]) if each.name == "waits-for-connack")
    assert line.verdict is PASS
    assert line.by_time == pytest.approx(0.3)


def test_who_waits_for_ever_is_warned_and_who_never_came_is_not_judged() -> None:
    assert verdicts(judging.gives_up([attempt(0.0)], 20.0)) == {"gives-up": WARN}
    assert verdicts(judging.gives_up([attempt(0.0, 3.0, offered=0x0304)], 20.0)) == {"gives-up": PASS}
    assert verdicts(judging.gives_up([], 20.0)) == {"gives-up": SKIP}
    assert verdicts(judging.verifies([])) == {"sends-nothing": SKIP}
    assert verdicts(judging.refuses_old_tls([])) == {"sends-nothing": SKIP}


def test_who_connects_without_a_connect_is_not_served() -> None:
    (line,) = judging.habits([attempt(tls=0.1), attempt(tls=0.2)])
    assert (line.name, line.verdict, line.seen) == ("connects", FAIL, "2 connections, none with a CONNECT")
    (line,) = judging.habits([])
    assert line.seen == "it did not come"


def test_what_is_sent_after_connack_is_no_hurry_and_the_first_connection_counts() -> None:
    message = Publish("t", b"m", QoS.AT_LEAST_ONCE, packet_id=1)
    good = attempt(tls=0.0, tls_version="TLSv1.3", answered=1.0, certificate=True, packets=[(0.0, connect())])
    good.packets += [(1.1, message), (1.2, message)]
    anonymous = attempt(tls=2.0, tls_version="TLSv1.2", answered=2.1, packets=[(2.0, connect())])
    found = verdicts(judging.habits([good, anonymous]))
    assert (found["tls"], found["certificate"], found["waits-for-connack"]) == (PASS, PASS, PASS)


def test_all_that_was_not_acknowledged_first_counts_and_not_what_came_behind() -> None:
    first, second = sender(0, b"a", dup=False), sender(1, b"b", dup=True, packet_id=2)
    first.packets.append((0.5, Publish("t", b"b", QoS.AT_LEAST_ONCE, packet_id=2)))
    assert verdicts(judging.redelivers([first, second], 10.0)) == {"resends": FAIL}
    second.packets.append((1.1, Publish("t", b"a", QoS.AT_LEAST_ONCE, dup=True, packet_id=1)))
    assert verdicts(judging.redelivers([first, second], 10.0)) == {"resends": PASS, "marks-duplicate": PASS}


def test_only_what_is_sent_again_in_its_session_must_be_marked() -> None:
    """A clean start discards what was under way [MQTT-3.1.2-4]; who begins with one may keep the session behind it."""
    kept, clean = sender(0, b"a", dup=False), sender(1, b"a", dup=False, clean=True)
    assert verdicts(judging.redelivers([kept, clean], 10.0))["marks-duplicate"] is SKIP
    first, later = sender(0, b"a", dup=False, clean=True), sender(1, b"a", dup=False)
    assert verdicts(judging.redelivers([first, later], 10.0))["marks-duplicate"] is FAIL


def test_an_older_device_cannot_be_told_a_name() -> None:
    first, later = sender(0, b"a", dup=False), sender(1, b"a", dup=True)
    first.sent = [Connack(properties=Properties(assigned_client_identifier="assigned"))]
    later.sent = [Connack(session_present=True)]
    assert verdicts(judging.redelivers([first, later], 10.0)) == {"resends": PASS, "marks-duplicate": PASS}


def test_a_device_that_was_told_nothing_has_no_other_name() -> None:
    first = attempt(0.0, 1.0, tls=0.0, answered=0.1, packets=[(0.0, Connect("d", clean_start=False))])
    first.packets.append((0.2, Publish("t", b"m", QoS.AT_LEAST_ONCE, packet_id=1)))
    assert verdicts(judging.redelivers([first, sender(2, b"m", dup=True)], 10.0))["resends"] is PASS


def test_nobody_acknowledges_a_message_of_qos_0() -> None:
    first, later = served(0.0), served(2.0)
    first.packets.append((0.1, Publish("t", b"m", QoS.AT_MOST_ONCE)))
    (line,) = judging.redelivers([first, later], 10.0)
    assert (line.verdict, line.why) == (SKIP, "it publishes nothing with QoS 1 or 2")


def test_who_says_goodbye_to_a_broker_that_serves_it_well_leaves() -> None:
    gone, broken = served(0.0), served(0.0)
    gone.packets.append((1.0, Disconnect()))
    broken.ended = 1.0
    unserved = believing(0.0)
    unserved.packets.append((1.0, Disconnect()))
    assert [judging.leaves([each]) for each in (gone, broken, unserved)] == [True, False, False]
    assert judging.leaves([broken, gone])


@pytest.mark.parametrize(
    ("goes_on", "sequences"), [(False, [[4.0, 8.0], [9.0], [2.0]]), (True, [[4.0, 8.0, 9.0, 2.0]])]
)
def test_the_waits_of_a_device_that_lives_through_all_stages_are_one_sequence_until_it_is_served(
    goes_on: bool, sequences: list[list[float]]
) -> None:
    """Hardware that has waited longer and longer begins the next stage with a long wait: no constant one."""
    failures = Failures()
    for waits in ((4.0, 8.0), (9.0,), (2.0,)):
        failures.add(row(*waits), failing=True, goes_on=goes_on)
    assert failures.sequences == sequences
    failures.add([served(0.0)], failing=False, goes_on=goes_on)
    failures.add(row(1.0), failing=True, goes_on=goes_on)
    failures.add([served(0.0), served(3.0)], failing=True, goes_on=goes_on)  # Broken behind CONNACK.
    failures.add(row(0.5), failing=True, goes_on=goes_on)
    assert failures.sequences[len(sequences) :] == ([[1.0], [0.0], [0.5]] if not goes_on else [[1.0, 0.0], [0.5]])


@pytest.mark.parametrize(
    ("status", "words"), [(3, "with status 3"), (0, "with status 0"), (-11, "by SIGSEGV"), (-40, "by signal 40")]
)
def test_any_way_to_end_has_words(status: int, words: str) -> None:
    assert judging.ending(status, "") == f"it ended {words}, and said nothing"


def test_the_waits_of_hardware_grow_from_one_connection_that_was_served_to_the_next() -> None:
    failed = [Attempt(0.0, ended=0.0), Attempt(1.0, ended=1.0)]
    served = [Attempt(0.0, ended=0.0), Attempt(1.0, answered=1.1, ended=2.0), Attempt(3.0)]
    failures = Failures()
    failures.add(failed, failing=False, goes_on=True)  # It is not served, where it could have been.
    failures.add(failed, failing=True, goes_on=True)
    failures.add(failed, failing=False, goes_on=True)
    failures.add(failed, failing=True, goes_on=True)
    assert failures.sequences == [[1.0, 1.0]]
    failures.add(served, failing=False, goes_on=True)  # Once is enough to begin anew.
    failures.add(failed, failing=True, goes_on=True)
    assert failures.sequences == [[1.0, 1.0], [1.0]]
    failures.add(failed, failing=True, goes_on=False)
    assert failures.sequences == [[1.0, 1.0], [1.0], [1.0]], "each program is another device"
