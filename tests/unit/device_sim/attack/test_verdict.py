"""The verdict: pass, warn or fail, from what was seen and what was due."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from device_sim.attack.verdict import (
    BROKEN,
    DELIVERED_AGAIN,
    HELD_BACK,
    MALFORMED,
    NEVER_CAME,
    NOT_DELIVERED,
    OPEN,
    STARVED,
    UNADVISED,
    UNANSWERED,
    ClosedBy,
    Judgement,
    Layer,
    Outcome,
    Seen,
    Verdict,
    before_mqtt5,
    came_to_the_broker,
    is_admission,
    is_answer,
    judge,
    on_this_machine,
    seen_in,
)
from device_sim.link.closure import Closure
from device_sim.link.closure import Layer as ClosureLayer

EXPIRED = Seen(Layer.TLS, "certificate_expired")
IN = Seen(Layer.MQTT, "CONNACK 0x00", got_in=True)
CLOSED = Seen(Layer.TCP, "reset")
STILL_OPEN = Seen(Layer.MQTT, OPEN, closed_by=ClosedBy.NOBODY, got_in=True)
NOT_COME = Seen(Layer.MQTT, NEVER_CAME, "its will was never sent", ClosedBy.NOBODY)
WRONG = Seen(Layer.MQTT, BROKEN, "it came twice", ClosedBy.NOBODY)
NOT_ADVISED = Seen(Layer.MQTT, UNADVISED, "closed without a DISCONNECT", ClosedBy.NOBODY)
NOT_PASSED_ON = Seen(Layer.MQTT, HELD_BACK, "it went to nobody else", ClosedBy.NOBODY)
UNSERVED = Seen(Layer.MQTT, STARVED, "an innocent device was not served", ClosedBy.NOBODY)
GARBAGE = Seen(Layer.MQTT, MALFORMED, "HTTP/1.1 400", ClosedBy.NOBODY)
ISSUED = Seen(Layer.HTTP, "issued", got_in=True)
DONE = Seen(Layer.HTTP, "200", got_in=True)
GONE = Seen(Layer.TCP, UNANSWERED, "Connection refused", ClosedBy.NOBODY)


@pytest.mark.parametrize(
    ("expected", "seen", "seconds", "verdict", "why"),
    [
        (("tls certificate_expired",), EXPIRED, 0.1, Verdict.PASS, ""),
        (("tls unknown_ca", "tls certificate_expired"), EXPIRED, 0.1, Verdict.PASS, ""),
        (("tls certificate_expired",), EXPIRED, 3.5, Verdict.FAIL, "after 3.5 s, 3 s at most"),
        (("tls unknown_ca",), EXPIRED, 0.1, Verdict.WARN, "refused, but not in the expected way"),
        (("tls unknown_ca",), EXPIRED, 9.0, Verdict.FAIL, "after 9.0 s, 3 s at most"),
        (("tls unknown_ca",), CLOSED, 0.1, Verdict.WARN, "refused, but not in the expected way"),
        (("closed",), CLOSED, 0.1, Verdict.PASS, ""),
        (("closed",), EXPIRED, 0.1, Verdict.WARN, "refused, but not in the expected way"),
        (("tls unknown_ca",), IN, 0.1, Verdict.FAIL, "the attack succeeded: the broker let it in"),
        (("closed",), STILL_OPEN, 3.0, Verdict.FAIL, "still open at the deadline"),
        (("tls unknown_ca",), GONE, 0.1, Verdict.FAIL, "nobody answered"),
        (("mqtt CONNACK 0x00",), GONE, 0.1, Verdict.FAIL, "nobody answered"),
        (("mqtt served",), UNSERVED, 0.1, Verdict.FAIL, "an innocent device was not served"),
        (("mqtt CONNACK 0x00",), IN, 0.1, Verdict.PASS, ""),
        (("mqtt CONNACK 0x00",), EXPIRED, 0.1, Verdict.FAIL, "refused where it must not be"),
        (("mqtt CONNACK 0x00", "tls unknown_ca"), EXPIRED, 0.1, Verdict.WARN, "refused, but not in the expected way"),
        (("tls certificate_expired",), EXPIRED, 3.0, Verdict.PASS, ""),
        (("closed",), GARBAGE, 0.1, Verdict.FAIL, "no refusal: HTTP/1.1 400"),
        (("mqtt malformed",), GARBAGE, 0.1, Verdict.FAIL, "no refusal: HTTP/1.1 400"),
        (("mqtt delivered",), Seen(Layer.MQTT, NOT_DELIVERED), 0.1, Verdict.FAIL, "it never came"),
        (("mqtt delivered",), Seen(Layer.MQTT, DELIVERED_AGAIN), 0.1, Verdict.FAIL, "it came more than once"),
        # What is advised is no more than that, however long it takes; what is owed is owed.
        (("mqtt kept",), NOT_ADVISED, 9.0, Verdict.WARN, "closed without a DISCONNECT"),
        (("mqtt kept",), NOT_PASSED_ON, 9.0, Verdict.WARN, "it went to nobody else"),
        (("mqtt kept",), WRONG, 0.1, Verdict.FAIL, "it came twice"),
        (("mqtt kept",), NOT_COME, 0.1, Verdict.FAIL, "its will was never sent"),
        (("http 401 TOKEN_USED",), ISSUED, 0.1, Verdict.FAIL, "the attack succeeded: it got a certificate"),
        (("http 403 DENIED",), DONE, 0.1, Verdict.FAIL, "the attack succeeded: the service did what it was asked"),
    ],
)
def test_a_verdict_follows_from_answer_and_time(
    expected: tuple[str, ...], seen: Seen, seconds: float, verdict: Verdict, why: str
) -> None:
    assert judge(expected, 3.0, seen, seconds) == Judgement(verdict, why)


@pytest.mark.parametrize(
    ("seen", "seconds", "waiting", "verdict"),
    [
        (UNSERVED, 0.1, 0.16, Verdict.INVALID),
        (UNSERVED, 0.1, 0.15, Verdict.FAIL),
        (NOT_COME, 0.1, 0.16, Verdict.INVALID),
        (NOT_COME, 0.1, 0.15, Verdict.FAIL),
        (WRONG, 0.1, 0.99, Verdict.FAIL),
        (NOT_ADVISED, 0.1, 0.99, Verdict.WARN),
        (NOT_PASSED_ON, 0.1, 0.15, Verdict.WARN),
        (NOT_PASSED_ON, 0.1, 0.16, Verdict.INVALID),
        (EXPIRED, 3.5, 0.16, Verdict.INVALID),
        (EXPIRED, 3.5, 0.15, Verdict.FAIL),
        (EXPIRED, 0.1, 0.99, Verdict.PASS),
        # Whoever got in, stayed in or was not answered has not been kept waiting by a busy machine.
        (IN, 0.1, 0.99, Verdict.FAIL),
        (STILL_OPEN, 3.0, 0.99, Verdict.FAIL),
        (GONE, 0.1, 0.99, Verdict.FAIL),
        (Seen(Layer.MQTT, "taken-over", got_in=True), 0.1, 0.99, Verdict.FAIL),
    ],
)
def test_a_starved_machine_excuses_what_is_slow_and_nothing_else(
    seen: Seen, seconds: float, waiting: float, verdict: Verdict
) -> None:
    expected = ("tls certificate_expired",)
    first = judge(expected, 3.0, seen, seconds)
    judgement = on_this_machine(first, expected, seen, {"the attacker": 0.0, "the broker": waiting}, 0.15)
    assert judgement.verdict is verdict
    assert judgement.why.startswith(first.why)
    assert ("waited for a core in 16% of the time" in judgement.why) is (verdict is Verdict.INVALID)


def test_one_of_several_right_answers_is_excused_if_it_is_slow() -> None:
    expected = ("tls unknown_ca", "tls certificate_expired")
    judgement = on_this_machine(judge(expected, 3.0, EXPIRED, 3.5), expected, EXPIRED, {"the broker": 0.5}, 0.15)
    assert judgement.verdict is Verdict.INVALID


@pytest.mark.parametrize("who", ["the attacker", "the broker"])
def test_whoever_waited_longest_for_a_core_counts_and_is_named(who: str) -> None:
    expected = ("tls certificate_expired",)
    waiting = {"the attacker": 0.01, "the broker": 0.01, who: 0.5}
    judgement = on_this_machine(judge(expected, 3.0, EXPIRED, 3.5), expected, EXPIRED, waiting, 0.15)
    assert judgement.verdict is Verdict.INVALID
    assert f"but {who} waited for a core in 50% of the time" in judgement.why


def test_an_answer_is_timed_from_when_it_was_asked_for() -> None:
    seen = EXPIRED.since(time.monotonic() - 7.0)
    assert seen.seconds is not None
    assert 7.0 <= seen.seconds < 60.0
    assert replace(seen, seconds=None) == EXPIRED


@pytest.mark.parametrize(
    ("seen", "answered"),
    [
        (EXPIRED, True),
        (IN, True),
        (CLOSED, False),
        (Seen(Layer.TCP, "closed"), False),
        (STILL_OPEN, False),
        (GONE, False),
    ],
)
def test_who_closes_without_a_word_has_not_answered(seen: Seen, answered: bool) -> None:
    assert is_answer(seen) is answered
    assert answered or seen.alert is None


@pytest.mark.parametrize(
    ("answer", "lets_in"),
    [
        ("mqtt CONNACK 0x00", True),
        ("mqtt CONNACK 0", True),
        ("mqtt CONNACK 5", False),
        ("mqtt CONNACK 0x87", False),
        ("mqtt SUBACK 0x01", True),
        ("mqtt SUBACK 0x80", False),
        ("mqtt PUBACK 0x10", True),
        ("mqtt DISCONNECT 0x98", False),
        ("mqtt delivered", True),
        ("mqtt not-delivered", False),
        ("http issued", True),
        ("http 401 TOKEN_USED", False),
        ("tls unknown_ca", False),
        ("closed", False),
    ],
)
def test_an_answer_lets_in_or_not(answer: str, lets_in: bool) -> None:
    assert is_admission(answer) is lets_in


def test_a_code_is_told_apart_from_an_alert() -> None:
    assert Seen(Layer.TLS, "reset").alert is None
    assert (EXPIRED.alert, EXPIRED.reason_code) == ("certificate_expired", None)
    assert (CLOSED.alert, CLOSED.reason_code) == (None, None)
    assert (IN.alert, IN.reason_code) == (None, "0x00")
    assert Seen(Layer.HTTP, "401 TOKEN_USED").reason_code == "401"


@pytest.mark.parametrize(
    ("closure", "text"),
    [
        (Closure(ClosureLayer.TLS, "unknown_ca", "", 0.0), "tls unknown_ca"),
        (Closure(ClosureLayer.TLS, "closed", "", 0.0), "tls closed"),
        (Closure(ClosureLayer.TCP, "reset", "", 0.0), "tcp reset"),
        (Closure(ClosureLayer.TCP, "error", "Connection refused", 0.0), "tcp unanswered"),
        (Closure(ClosureLayer.TCP, "timeout", "", 0.0), "tcp unanswered"),
    ],
)
def test_a_closure_is_an_answer(closure: Closure, text: str) -> None:
    assert seen_in(closure).text == text


def test_an_outcome_is_the_record_of_a_case() -> None:
    seen = Seen(Layer.MQTT, "CONNACK 0x87", "REVOKED: certificate revoked")
    outcome = Outcome("5-revoked", "is revoked", ("mqtt CONNACK 0x87",), 3.0, Judgement(Verdict.PASS), seen, 0.76543)
    assert outcome.as_dict() == {
        "case": "5-revoked",
        "description": "is revoked",
        "expected": {"any_of": ["mqtt CONNACK 0x87"], "within_ms": 3000},
        "observed": {
            "layer": "mqtt",
            "answer": "mqtt CONNACK 0x87",
            "alert": None,
            "reason_code": "0x87",
            "reason_string": "REVOKED: certificate revoked",
            "closed_by": "peer",
            "ms": 765.4,
        },
        "verdict": "pass",
        "why": "",
    }


@pytest.mark.parametrize(
    ("expected", "then"),
    [
        (("mqtt CONNACK 0x00",), ("mqtt CONNACK 0",)),
        (("mqtt CONNACK 0x85", "mqtt CONNACK 0x87"), ("mqtt CONNACK 2", "mqtt CONNACK 5")),
        (("mqtt CONNACK 0x87", "mqtt CONNACK 0x8a", "tls certificate_revoked"),
         ("mqtt CONNACK 5", "tls certificate_revoked")),
        (("mqtt CONNACK 0x8a", "mqtt CONNACK 0x87"), ("mqtt CONNACK 3", "mqtt CONNACK 5")),
        (("mqtt CONNACK 5", "closed"), ("mqtt CONNACK 5", "closed")),
        (("mqtt DISCONNECT 0x98",), ("closed",)),
        (("mqtt PUBACK 0x87",), ("mqtt not-delivered", "closed")),
        (("mqtt PUBREC 0x87",), ("mqtt not-delivered", "closed")),
        (("mqtt PUBACK 0x80", "mqtt SUBACK 0x80"), ("mqtt not-delivered", "closed", "mqtt SUBACK 0x80")),
        (("mqtt SUBACK 0x80",), ("mqtt SUBACK 0x80", "closed")),
        (("mqtt SUBACK 0x87", "mqtt SUBACK 0x9e"), ("mqtt SUBACK 0x80", "closed")),
        (("mqtt served", "http 401 TOKEN_USED"), ("mqtt served", "http 401 TOKEN_USED")),
    ],
)  # fmt: skip
def test_before_mqtt5_the_right_answer_is_a_return_code_or_the_deed(
    expected: tuple[str, ...], then: tuple[str, ...]
) -> None:
    assert before_mqtt5(expected) == then
    assert before_mqtt5(then) == then


def test_who_must_be_let_in_must_be_let_in_before_mqtt5_too() -> None:
    assert all(map(is_admission, before_mqtt5(("mqtt CONNACK 0x00", "mqtt CONNACK 0"))))


@pytest.mark.parametrize(
    ("seen", "came"),
    [(EXPIRED, True), (IN, True), (CLOSED, True), (UNSERVED, True), (STILL_OPEN, False), (GONE, False)],
)
def test_whom_nobody_answered_has_not_come_to_the_broker(seen: Seen, came: bool) -> None:
    """What is asked of it next would say nothing."""
    assert came_to_the_broker(seen) is came
