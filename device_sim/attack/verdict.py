"""How a bad device was answered, how it should have been, and the verdict.

Theory
------
An answer is written as ``<layer> <code>``, identically in the catalogue, in a capability file and in a report::

    tls certificate_expired      a TLS alert, by its name in RFC 8446 §6
    mqtt CONNACK 0x87            a packet type and its reason code; before MQTT 5 its return code in decimal
    mqtt not-delivered           no refusal, but the message went nowhere
    http 401 TOKEN_USED          a status and the service's own code
    closed                       the peer closed without a reason, at any layer

A case lists every right answer. Any other answer that keeps the device out is a *warning*: access was denied, but an
operator looking for the cause is misled. Getting in, or being disconnected too late, is a *failure*.

Rules
-----
1. No I/O, and no clock except for `Seen.since`.
2. No answer at all is a failure: a broker that is gone has refused nobody. Nor has one that sends something other than
   a packet.
3. A case whose only right answers are admissions fails on any refusal.
4. If others held the cores, a right answer that came too late says nothing about the broker, nor does an innocent
   device that was not served: *invalid* (docs/decisions/0130). Nothing excuses getting in, or refusing a device that
   must get in.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from broker.mqtt.codes import ReasonCode, connect_return_code
from device_sim.link.closure import REFUSED, Closure

CLOSED = "closed"
OPEN = "open"
DELIVERED = "delivered"
DELIVERED_AGAIN = "delivered-again"
NOT_DELIVERED = "not-delivered"
STARVED = "starved"
"""An innocent device was not served, and got no reason."""
TURNED_AWAY = "turned-away"
"""An innocent device was refused, or disconnected."""
SERVED = "served"
PUT_OUT = "put-out"
"""An innocent device that was connected no longer is."""
KEPT = "kept"
"""A good party was given all that it is owed."""
BROKEN = "broken-promise"
"""A good party was not given what it is owed, or was given something else."""
UNADVISED = "unadvised"
"""A good party was not given what the standard advises: it says *should*, so the broker need not."""
HELD_BACK = "held-back"
"""The same, for something that should have arrived: on a starved machine it may still be in transit."""
NEVER_CAME = "never-came"
"""What was owed has not arrived: on a starved machine it may still be in transit."""
MALFORMED = "malformed"
"""The peer sent something other than an MQTT packet."""
UNANSWERED = "unanswered"

_SILENT = frozenset({"closed", "reset"})
_FAILURE = 0x80
_STILL_OPEN = "still open at the deadline"
_GAINS = {
    "CONNACK": "the broker let it in",
    "SUBACK": "the subscription was granted",
    "PUBACK": "the message was accepted",
    "PUBREC": "the message was accepted",
    DELIVERED: "it was delivered",
}
_PACKETS = frozenset({"CONNACK", "PUBACK", "PUBREC", "SUBACK", "DISCONNECT"})


class Verdict(StrEnum):
    """How a case ended."""

    PASS = "pass"  # noqa: S105 - a verdict
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"
    INVALID = "invalid"


class Layer(StrEnum):
    """Where the refusal came from."""

    TCP = "tcp"
    TLS = "tls"
    MQTT = "mqtt"
    HTTP = "http"
    DEVICE = "device"


class ClosedBy(StrEnum):
    """Which side ended the connection."""

    PEER = "peer"
    US = "us"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Said:
    """A message that somebody tries to get through.

    At *topic*, if given, nobody else says anything: whatever is heard there is this message, altered on the way or not.
    """

    payload: bytes
    topic: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was observed. *seconds* is how long the broker took; None if the whole attempt counts."""

    layer: Layer
    code: str
    reason: str = ""
    closed_by: ClosedBy = ClosedBy.PEER
    got_in: bool = False
    seconds: float | None = None
    withheld: Said | None = None
    """What nobody had received at this point: a later arrival overrides this."""
    revoked: str = ""
    """The name of a device refused as revoked: a later admission means the revocation was forgotten."""
    figures: str = ""
    """What was measured, to be shown whatever the verdict is."""

    @property
    def text(self) -> str:
        """The answer as the catalogue writes it."""
        return f"{self.layer} {self.code}"

    def since(self, started: float) -> Seen:
        """Return the same, seen now, timed from *started* (`time.monotonic`): the time before was our own."""
        return replace(self, seconds=time.monotonic() - started)

    @property
    def alert(self) -> str | None:
        """The TLS alert, if one was sent."""
        return self.code if self.layer is Layer.TLS and self.code not in _SILENT else None

    @property
    def reason_code(self) -> str | None:
        """The reason code of the packet, or the HTTP status."""
        packet, _, number = self.code.partition(" ")
        if self.layer is Layer.HTTP:
            return packet
        return number if packet in _PACKETS else None

    def matches(self, expected: str) -> bool:
        """Whether this is the *expected* answer."""
        if expected == CLOSED:
            return self.code in _SILENT
        return self.text == expected


@dataclass(frozen=True, slots=True)
class Judgement:
    """One case's outcome: the verdict and its reason."""

    verdict: Verdict
    why: str = ""


def judge(expected: tuple[str, ...], limit: float, seen: Seen, seconds: float) -> Judgement:
    """Return the verdict on *seen*, which took *seconds*, where one of *expected* was due within *limit* seconds."""
    if seen.code == UNANSWERED:
        return Judgement(Verdict.FAIL, "nobody answered")
    if seen.code in {STARVED, TURNED_AWAY, BROKEN, NEVER_CAME}:
        return Judgement(Verdict.FAIL, seen.reason)
    if seen.code in {UNADVISED, HELD_BACK}:
        return Judgement(Verdict.WARN, seen.reason)
    if seen.code == MALFORMED:
        return Judgement(Verdict.FAIL, f"no refusal: {seen.reason}")
    late = f"after {seconds:.1f} s, {limit:g} s at most" if seconds > limit else ""
    if any(map(seen.matches, expected)):
        return Judgement(Verdict.FAIL, late) if late else Judgement(Verdict.PASS)
    if seen.got_in:
        return Judgement(Verdict.FAIL, f"the attack succeeded: {_gain(seen)}" if seen.code != OPEN else _STILL_OPEN)
    if all(map(is_admission, expected)):
        return Judgement(Verdict.FAIL, _missed(seen))
    if late:
        return Judgement(Verdict.FAIL, late)
    return Judgement(Verdict.WARN, "refused, but not in the expected way")


def _gain(seen: Seen) -> str:
    """Return what the attacker got by *seen*."""
    packet = seen.code.partition(" ")[0]
    if seen.layer is Layer.HTTP:
        return "it got a certificate" if seen.code == "issued" else "the service did what it was asked"
    return _GAINS.get(packet, "it was not refused")


def _missed(seen: Seen) -> str:
    """Return what is wrong with *seen*, where the device was entitled to something."""
    if seen.code == NOT_DELIVERED:
        return "it never came"
    if seen.code == DELIVERED_AGAIN:
        return "it came more than once"
    return seen.reason if seen.code == PUT_OUT else "refused where it must not be"


def on_this_machine(
    judgement: Judgement, expected: tuple[str, ...], seen: Seen, waiting: Mapping[str, float], most: float
) -> Judgement:
    """Return *judgement* on *seen*, or that there can be none (rule 4).

    *waiting* is the share of the time in which attacker and broker, as far as known, were ready to run without a core;
    *most* is the allowed maximum.
    """
    only_slow = seen.code in {STARVED, NEVER_CAME, HELD_BACK} or any(map(seen.matches, expected))
    who, share = max(waiting.items(), key=lambda item: item[1])
    spoilt = judgement.verdict is Verdict.FAIL or seen.code == HELD_BACK
    if not spoilt or not only_slow or share <= most:
        return judgement
    return Judgement(
        Verdict.INVALID,
        f"{judgement.why}; but {who} waited for a core in {share:.0%} of the time: try again when less else is "
        "running, or on a larger machine",
    )


def is_answer(seen: Seen) -> bool:
    """Whether the peer gave an answer: not if it closed without a reason, or nothing came in time."""
    return seen.code not in _SILENT and seen.code not in {OPEN, UNANSWERED}


def came_to_the_broker(seen: Seen) -> bool:
    """Whether an attempt answered so can have had an effect: not if nobody answered, or nothing came in time."""
    return seen.code not in {UNANSWERED, OPEN}


def is_admission(expected: str) -> bool:
    """Whether the answer lets the device have what it wants."""
    _, _, code = expected.partition(" ")
    packet, _, number = code.partition(" ")
    if packet in {"CONNACK", "PUBACK", "PUBREC", "SUBACK"}:
        return int(number, 0) < _FAILURE and not (packet == "CONNACK" and number not in {"0", "0x00"})
    return code in {DELIVERED, "issued", OPEN, "served", "agreed"}


def before_mqtt5(expected: tuple[str, ...]) -> tuple[str, ...]:
    """Return *expected* for protocols before MQTT 5: a return code, or the effect alone.

    Who may be told that its certificate is revoked is out for good: *server unavailable* would have it come again.
    """
    for_good = _REVOKED in expected
    return tuple(dict.fromkeys(answer for each in expected for answer in _before_mqtt5(each, for_good=for_good)))


def _before_mqtt5(expected: str, *, for_good: bool) -> tuple[str, ...]:
    _, _, code = expected.partition(" ")
    packet, _, number = code.partition(" ")
    match packet:
        case "CONNACK" if number == _BANNED:  # Of brokers that ban, some say one of these and some the other.
            return (_FOR_GOOD,) if for_good else (_NOT_NOW, _FOR_GOOD)
        case "CONNACK" if number.startswith("0x"):
            return (_returned(ReasonCode(int(number, 0))),)
        case "DISCONNECT":
            return (CLOSED,)
        case "PUBACK" | "PUBREC" if int(number, 0) >= _FAILURE:
            return ("mqtt not-delivered", CLOSED)
        case "SUBACK" if int(number, 0) >= _FAILURE:
            return ("mqtt SUBACK 0x80", CLOSED)
        case _:
            return (expected,)


def _returned(code: ReasonCode) -> str:
    return f"mqtt CONNACK {connect_return_code(code).value}"


_REVOKED = "tls certificate_revoked"
_BANNED = "0x8a"
_NOT_NOW = _returned(ReasonCode.BANNED)
_FOR_GOOD = _returned(ReasonCode.NOT_AUTHORIZED)


def seen_in(closure: Closure) -> Seen:
    """Return what *closure* means: the end of a connection that never carried a packet of ours."""
    if closure.code in {"error", "timeout", REFUSED}:
        return Seen(Layer.TCP, UNANSWERED, closure.reason, ClosedBy.NOBODY)
    return Seen(Layer(closure.layer.value), closure.code, closure.reason)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The record of one case."""

    name: str
    description: str
    expected: tuple[str, ...]
    limit: float
    judgement: Judgement
    seen: Seen | None = None
    seconds: float = 0.0
    clause: str = ""
    """The clause of the standard that the case is judged by, if any."""

    @property
    def verdict(self) -> Verdict:
        """The verdict."""
        return self.judgement.verdict

    def as_dict(self) -> dict[str, Any]:
        """Return the record for a JSON document."""
        seen = self.seen
        observed = None
        if seen is not None:
            observed = {
                "layer": seen.layer.value,
                "answer": seen.text,
                "alert": seen.alert,
                "reason_code": seen.reason_code,
                "reason_string": seen.reason,
                **({"figures": seen.figures} if seen.figures else {}),
                "closed_by": seen.closed_by.value,
                "ms": round(self.seconds * 1000, 1),
            }
        clause = {"clause": self.clause} if self.clause else {}
        return {
            "case": self.name,
            "description": self.description,
            **clause,
            "expected": {"any_of": list(self.expected), "within_ms": round(self.limit * 1000)},
            "observed": observed,
            "verdict": self.verdict.value,
            "why": self.judgement.why,
        }
