"""Why a connection ended, or was never opened: the layer, the peer's code, the peer's text.

Theory
------
A client learns of a refusal in one of four ways: the network gives up (TCP), the peer sends a TLS alert (RFC 8446 §6),
does not become a WebSocket where that is asked for (RFC 6455 §4.2.2), or the broker answers with a reason code (MQTT 5
§2.4; 3.1.1 §3.2.2.3). In TLS 1.3 the client finishes its handshake
before the server has checked its certificate, so the alert arrives on a later read; it is still a TLS refusal.

Rules
-----
1. The closure alone decides whether to try again (`verdict`): one table for all devices.
2. Nothing is guessed: without an alert or reason code it is ``closed``, ``reset`` or ``timeout``.
3. If the broker says when to reconnect (the user property `RETRY_AFTER`), the device reconnects, whatever the reason
   code. The hint is limited to one hour.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum

from provisioning.program.printable import printable

REVOKED = "REVOKED"
"""First word of the broker's reason string whenever a revoked certificate is the cause."""

SERVER_CERTIFICATE = "server_certificate"
"""The code of a connection that we refuse ourselves: the server's certificate is not acceptable."""

REFUSED = "refused"
_SESSION_PRESENT = "session present"
CLOSED = "closed"
"""The code of a connection that the peer has ended without saying why."""
_RESET, _TIMEOUT = "reset", "timeout"
BROKEN = "broken"
"""The code of a connection broken by the scenario, like a network failure: not caused by the broker."""

RETRY_AFTER = "retry-after"
"""The user property with the number of seconds that a client should stay away, like HTTP's header."""
_LONGEST_HINT = 3600.0
_DIGITS = 9

_ALERT = re.compile(r"(?:TLSV1|TLSV13|TLS|SSLV3)_ALERT_(\w+)")
_HALF_WRITTEN = "record layer failure"
_CONNACK_311 = {
    1: "unacceptable protocol version",
    2: "identifier rejected",
    3: "server unavailable",
    4: "bad user name or password",
    5: "not authorized",
}
_RETURN_CODES = {0x84: 1, 0x85: 2, 0x88: 3, 0x86: 4, 0x87: 5}
"""Both clients turn the return codes of 3.1.1 into MQTT 5 reason codes; these are the original ones."""
_UNAVAILABLE_311 = 3
_MQTT5_FAILURE = 0x80
# MQTT 5 §2.4: conditions that pass by themselves. All others at or above 0x80 need somebody to change something.
_PASSING = frozenset({
    0x88,  # Server unavailable
    0x89,  # Server busy
    0x8B,  # Server shutting down
    0x8D,  # Keep Alive timeout
    0x93,  # Receive Maximum exceeded
    0x96,  # Message rate too high
    0x97,  # Quota exceeded
    0x9F,  # Connection rate exceeded
})  # fmt: skip
_CERTIFICATE_ALERTS = frozenset({
    "bad_certificate", "unsupported_certificate", "certificate_revoked", "certificate_expired", "certificate_unknown",
    "certificate_required", "unknown_ca", "access_denied", "decrypt_error", "protocol_version",
})  # fmt: skip


class BrokenByUs(ConnectionError):
    """The scenario breaks this connection."""


class BrokenFrames(ConnectionError):
    """What the peer sends on a WebSocket is not a frame that it may send; the text says what."""


class Layer(StrEnum):
    """Where a connection ended."""

    TCP = "tcp"
    TLS = "tls"
    WEBSOCKET = "websocket"
    MQTT = "mqtt"


class Verdict(Enum):
    """What a closure means for the device."""

    AGAIN = "try again later"
    FINAL = "refused until somebody changes something"
    REVOKED = "the certificate is revoked"


@dataclass(frozen=True, slots=True)
class Closure:
    """How one connection ended. *at* is `time.monotonic`; *number* the MQTT reason code, if there was one.

    *reason* is the peer's text, made `printable`: it is shown in reports and on terminals.

    *retry_after* is how many seconds the broker asks the device to stay away, if it does.
    """

    layer: Layer
    code: str
    reason: str
    at: float
    number: int | None = None
    retry_after: float | None = None

    def __post_init__(self) -> None:
        """Make the text printable."""
        object.__setattr__(self, "reason", printable(self.reason))

    def __str__(self) -> str:
        return f"{self.layer} {self.code}" + (f" ({self.reason})" if self.reason else "")

    @property
    def is_answer(self) -> bool:
        """Whether it may be a refusal by the peer: if nobody listens or answers in time, or we refuse, it is none."""
        if self.layer is Layer.TCP:
            return self.code in {CLOSED, _RESET}
        return self.code not in {_TIMEOUT, SERVER_CERTIFICATE, _SESSION_PRESENT}

    @property
    def was_let_in(self) -> bool:
        """Whether the peer had let us in, and it was us who left: whoever must stay out was not kept out."""
        return self.code == _SESSION_PRESENT

    @property
    def verdict(self) -> Verdict:
        """What the device should do next."""
        if self.code == "certificate_revoked" or (self.layer is Layer.MQTT and self.reason.startswith(REVOKED)):
            return Verdict.REVOKED
        if self.retry_after is not None:
            return Verdict.AGAIN
        if self.layer is Layer.TLS:
            return Verdict.FINAL if self.code in _CERTIFICATE_ALERTS else Verdict.AGAIN
        if self.number is None or self.number in _PASSING or self.number == _UNAVAILABLE_311:
            return Verdict.AGAIN
        # A normal disconnection or a 3.1.1 refusal is below 0x80; only the refusals among them are final.
        return Verdict.FINAL if self.number >= _MQTT5_FAILURE or self.number in _CONNACK_311 else Verdict.AGAIN


def from_error(error: BaseException, at: float) -> Closure:
    """Return the closure that corresponds to an exception of a socket or a handshake."""
    layer, reason = Layer.TLS, ""
    match error:
        case ssl.SSLEOFError():
            code, reason = CLOSED, "the peer closed the connection without an alert"
        case ssl.SSLCertVerificationError():
            code, reason = SERVER_CERTIFICATE, f"we refuse the server: {error.verify_message}"
        # OpenSSL 3's error for a record that it could not write completely, because the peer was gone.
        case ssl.SSLError() if _HALF_WRITTEN in str(error):
            layer, code, reason = Layer.TCP, _RESET, "the peer reset the connection"
        case ssl.SSLError(reason=str(openssl)):
            alert = _ALERT.fullmatch(openssl)
            code = alert.group(1).lower() if alert else openssl.lower()
        case BrokenFrames():
            layer, code, reason = Layer.WEBSOCKET, "broken protocol", f"the broker: {error}"
        case BrokenByUs():
            layer, code, reason = Layer.TCP, BROKEN, "broken by the scenario"
        # OpenSSL 3 hides the errno of a failed write: "[SYS] unknown error" means a lost connection.
        case ConnectionResetError() | BrokenPipeError() | ssl.SSLSyscallError() | ssl.SSLError(library="SYS"):
            layer, code, reason = Layer.TCP, _RESET, "the peer reset the connection"
        case ConnectionRefusedError():
            layer, code, reason = Layer.TCP, REFUSED, "nobody listens there"
        case TimeoutError():
            layer, code, reason = Layer.TCP, _TIMEOUT, "no answer in time"
        case _:
            layer, code, reason = Layer.TCP, "error", str(error) or type(error).__name__
    return Closure(layer, code, reason, at)


def is_alert(error: BaseException) -> bool:
    """Whether *error* is an alert of the peer, and no failure of our own side."""
    return isinstance(error, ssl.SSLError) and _ALERT.fullmatch(error.reason or "") is not None


def hint_in(user_properties: Iterable[tuple[str, str]]) -> float | None:
    """Return how many seconds the broker asks the device to stay away, if it does."""
    for name, value in user_properties:
        if name == RETRY_AFTER and value.isascii() and value.isdigit():
            return min(float(value[:_DIGITS]), _LONGEST_HINT)
    return None


def unasked_session(at: float) -> Closure:
    """Return the closure of a connection whose CONNACK has Session Present though a clean start was requested.

    A client without a session must close it [MQTT-3.2.2-4]: it would wait for subscriptions that do not exist.
    """
    reason = "the broker says that it resumes a session, and a clean start was asked for"
    return Closure(Layer.MQTT, _SESSION_PRESENT, reason, at)


def connack_311(code: int, at: float) -> Closure:
    """Return the closure for a 3.1.1 CONNACK, whose return code the client turned into the reason code *code*."""
    number = _RETURN_CODES.get(code, int(code))
    return Closure(Layer.MQTT, f"{number} {_CONNACK_311.get(number, 'reserved')}", "", at, number)
