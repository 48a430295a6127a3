from __future__ import annotations

import ssl

import pytest

from device_sim.backoff import Jitter
from device_sim.link.closure import (
    BrokenByUs,
    Closure,
    Layer,
    Verdict,
    connack_311,
    from_error,
    hint_in,
    is_alert,
    unasked_session,
)
from device_sim.randomness import randomness_of
from device_sim.scenario.groups import BackoffPolicy


def alert(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, "text")
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "layer", "code"),
    [
        (alert("TLSV13_ALERT_CERTIFICATE_REQUIRED"), Layer.TLS, "certificate_required"),
        (alert("SSLV3_ALERT_CERTIFICATE_EXPIRED"), Layer.TLS, "certificate_expired"),
        (alert("TLS_ALERT_CERTIFICATE_EXPIRED"), Layer.TLS, "certificate_expired"),  # OpenSSL 4.0's name.
        (alert("TLSV1_ALERT_UNKNOWN_CA"), Layer.TLS, "unknown_ca"),
        (alert("WRONG_VERSION_NUMBER"), Layer.TLS, "wrong_version_number"),
        (ssl.SSLEOFError(8, "eof"), Layer.TLS, "closed"),
        # What OpenSSL 3 says of a flight that it could not write whole: the peer was gone. It bears no reason.
        (ssl.SSLError(1, "[SSL] record layer failure (_ssl.c:2580)"), Layer.TCP, "reset"),
        (ConnectionResetError(104, "reset"), Layer.TCP, "reset"),
        (BrokenByUs(), Layer.TCP, "broken"),
        (BrokenPipeError(32, "pipe"), Layer.TCP, "reset"),
        (TimeoutError(), Layer.TCP, "timeout"),
        (ConnectionRefusedError(111, "refused"), Layer.TCP, "refused"),
        (OSError(113, "no route"), Layer.TCP, "error"),
    ],
)
def test_an_error_is_the_closure_it_tells_of(error: Exception, layer: Layer, code: str) -> None:
    closure = from_error(error, at=1.0)
    assert (closure.layer, closure.code, closure.at) == (layer, code, 1.0)


@pytest.mark.parametrize(
    ("closure", "answered"),
    [
        (Closure(Layer.TCP, "refused", "nobody listens there", 0), False),
        (Closure(Layer.TCP, "timeout", "", 0), False),
        (Closure(Layer.TCP, "error", "no route to host", 0), False),
        (Closure(Layer.TCP, "broken", "", 0), False),
        (Closure(Layer.MQTT, "timeout", "", 0), False),
        (Closure(Layer.TLS, "server_certificate", "we refuse the server", 0), False),
        (unasked_session(0), False),
        (Closure(Layer.TCP, "reset", "", 0), True),
        (Closure(Layer.TCP, "closed", "the peer closed the connection", 0), True),
        (Closure(Layer.TLS, "closed", "", 0), True),
        (Closure(Layer.TLS, "certificate_revoked", "", 0), True),
        (Closure(Layer.MQTT, "0x89", "", 0, 0x89), True),
    ],
)
def test_a_broker_that_was_not_reached_has_refused_nobody(closure: Closure, answered: bool) -> None:
    assert closure.is_answer is answered
    assert closure.was_let_in is (closure == unasked_session(0))


@pytest.mark.parametrize(
    ("closure", "verdict"),
    [
        (Closure(Layer.TLS, "certificate_revoked", "", 0), Verdict.REVOKED),
        (Closure(Layer.TLS, "unknown_ca", "", 0), Verdict.FINAL),
        (Closure(Layer.TLS, "closed", "", 0), Verdict.AGAIN),
        (Closure(Layer.TLS, "server_certificate", "", 0), Verdict.AGAIN),
        (Closure(Layer.TCP, "reset", "", 0), Verdict.AGAIN),
        (Closure(Layer.TCP, "broken", "", 0), Verdict.AGAIN),
        (Closure(Layer.MQTT, "timeout", "", 0), Verdict.AGAIN),
        (Closure(Layer.MQTT, "0x98", "REVOKED: certificate revoked (keyCompromise)", 0, 0x98), Verdict.REVOKED),
        (Closure(Layer.MQTT, "0x98", "maintenance", 0, 0x98), Verdict.FINAL),
        (Closure(Layer.MQTT, "0x87", "REVOKED: certificate revoked", 0, 0x87), Verdict.REVOKED),
        (Closure(Layer.MQTT, "0x85", "CLIENT_ID_MISMATCH: …", 0, 0x85), Verdict.FINAL),
        (Closure(Layer.MQTT, "0x8e", "", 0, 0x8E), Verdict.FINAL),
        (Closure(Layer.MQTT, "0x8b", "", 0, 0x8B), Verdict.AGAIN),
        (Closure(Layer.MQTT, "0x00", "", 0, 0), Verdict.AGAIN),
        (Closure(Layer.MQTT, "0x8a", "FLAPPING: …", 0, 0x8A), Verdict.FINAL),
        (Closure(Layer.MQTT, "0x8a", "FLAPPING: …", 0, 0x8A, retry_after=60.0), Verdict.AGAIN),
        (Closure(Layer.MQTT, "0x87", "REVOKED: …", 0, 0x87, retry_after=60.0), Verdict.REVOKED),
        (connack_311(0x88, 0), Verdict.AGAIN),
        (connack_311(0x87, 0), Verdict.FINAL),
        (connack_311(0x85, 0), Verdict.FINAL),
    ],
)
def test_what_a_closure_means_for_the_device(closure: Closure, verdict: Verdict) -> None:
    assert closure.verdict is verdict


def test_only_the_broker_can_say_that_a_device_is_revoked() -> None:
    assert Closure(Layer.TCP, "error", "REVOKED", 0).verdict is Verdict.AGAIN


def test_a_closure_reads_as_layer_code_and_reason() -> None:
    assert str(Closure(Layer.TLS, "unknown_ca", "", 0)) == "tls unknown_ca"
    assert str(Closure(Layer.MQTT, "0x85 Client identifier not valid", "why", 0)) == (
        "mqtt 0x85 Client identifier not valid (why)"
    )


@pytest.mark.parametrize(
    ("properties", "hint"),
    [
        ((), None),
        ((("retry-after", "7"),), 7.0),
        ((("other", "9"), ("retry-after", "0")), 0.0),
        ((("retry-after", "soon"), ("retry-after", "-1"), ("retry-after", "²")), None),
        ((("retry-after", "9" * 400),), 3600.0),
    ],
)
def test_the_hint_is_read_where_it_is_one_and_believed_for_an_hour(
    properties: tuple[tuple[str, str], ...], hint: float | None
) -> None:
    assert hint_in(properties) == hint


def test_a_device_stays_away_for_as_long_as_it_is_asked_to_and_its_own_pause_spreads_it_behind() -> None:
    asked = Closure(Layer.MQTT, "0x8b", "SHUTTING_DOWN: …", 0, 0x8B, retry_after=12.0)
    policy = BackoffPolicy(base=1.0, cap=8.0)
    pauses = [policy.pause(1, randomness_of(seed, "test", "pause"), asked) for seed in range(200)]
    assert all(12.0 <= pause <= 14.0 for pause in pauses)
    assert max(pauses) - min(pauses) > 1.5
    deaf = BackoffPolicy(base=1.0, cap=8.0, jitter=Jitter.NONE, retry_after=False)
    assert deaf.pause(1, randomness_of(1, "test", "pause"), asked) == 2.0
    assert policy.pause(1, randomness_of(1, "test", "pause"), None) <= 2.0


def test_what_a_broker_says_stays_within_its_line_and_moves_no_cursor() -> None:
    hostile = "\x1b]52;c;Y3VybA==\x07\x1b[2J\nPASS: 9 of 9 checks"
    closure = Closure(Layer.MQTT, "0x87 Not authorized", hostile, 0.0, 0x87)
    assert str(closure) == r"mqtt 0x87 Not authorized (\x1b]52;c;Y3VybA==\x07\x1b[2J\nPASS: 9 of 9 checks)"


@pytest.mark.parametrize("number", [0x88, 0x89, 0x8B, 0x8D, 0x93, 0x96, 0x97, 0x9F])
def test_what_passes_by_itself_is_tried_again_and_its_neighbours_are_not(number: int) -> None:
    """MQTT 5 §2.4. A refusal that needs somebody to change something begins at 0x80."""
    assert Closure(Layer.MQTT, f"0x{number:02x}", "", 0, number).verdict is Verdict.AGAIN
    passing = {0x88, 0x89, 0x8B, 0x8D, 0x93, 0x96, 0x97, 0x9F}
    for other in {0x80, number - 1, number + 1} - passing:
        assert Closure(Layer.MQTT, f"0x{other:02x}", "", 0, other).verdict is Verdict.FINAL


@pytest.mark.parametrize(
    ("code", "number", "words"),
    [
        (0x84, 1, "unacceptable protocol version"),
        (0x85, 2, "identifier rejected"),
        (0x88, 3, "server unavailable"),
        (0x86, 4, "bad user name or password"),
        (0x87, 5, "not authorized"),
        (6, 6, "reserved"),
    ],
)
def test_a_return_code_of_3_1_1_is_told_by_its_own_number(code: int, number: int, words: str) -> None:
    closure = connack_311(code, 3.0)
    assert (closure.layer, closure.code, closure.number, closure.at) == (Layer.MQTT, f"{number} {words}", number, 3.0)


def test_an_alert_is_the_peer_s_and_no_failure_of_our_own() -> None:
    assert is_alert(alert("TLSV1_ALERT_UNKNOWN_CA"))
    assert not is_alert(alert("WRONG_VERSION_NUMBER"))
    without = ssl.SSLSyscallError(5, "the connection is lost")
    without.reason = None  # type: ignore[assignment]
    assert not is_alert(without)
    assert not is_alert(ConnectionResetError(104, "TLSV1_ALERT_UNKNOWN_CA"))


def test_a_server_that_we_refuse_is_told_with_what_is_wrong_with_it() -> None:
    error = ssl.SSLCertVerificationError(1, "text")
    error.verify_message = "certificate has expired"
    closure = from_error(error, 0)
    assert (closure.code, closure.reason) == ("server_certificate", "we refuse the server: certificate has expired")


@pytest.mark.parametrize(("error", "words"), [(OSError("no route"), "no route"), (OSError(), "OSError")])
def test_an_error_without_a_text_is_told_by_its_kind(error: OSError, words: str) -> None:
    assert from_error(error, 0).reason == words


def test_a_session_that_nobody_asked_for_is_a_closure_of_our_own() -> None:
    closure = unasked_session(2.0)
    assert (closure.layer, closure.code, closure.at) == (Layer.MQTT, "session present", 2.0)
    assert "a clean start was asked for" in closure.reason
