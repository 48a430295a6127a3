"""Why a client is refused or disconnected: one stable code, the same in log, metric, reason string and test."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from broker.mqtt.codes import ReasonCode
from broker.mqtt.properties import Properties


class RefusalCode(StrEnum):
    """Stable codes. Never renamed: operators' alerts and dashboards depend on them."""

    TLS_HANDSHAKE_FAILED = "TLS_HANDSHAKE_FAILED"
    HANDSHAKE_TIMEOUT = "HANDSHAKE_TIMEOUT"
    CONNECT_TIMEOUT = "CONNECT_TIMEOUT"
    TOO_MANY_CONNECTIONS = "TOO_MANY_CONNECTIONS"
    RATE_LIMITED = "RATE_LIMITED"
    FLAPPING = "FLAPPING"
    CLONE_SUSPECTED = "CLONE_SUSPECTED"
    BAD_PROXY_HEADER = "BAD_PROXY_HEADER"
    NOT_TLS = "NOT_TLS"
    NOT_WEBSOCKET = "NOT_WEBSOCKET"
    ORIGIN_NOT_ALLOWED = "ORIGIN_NOT_ALLOWED"
    UNSUPPORTED_TLS_VERSION = "UNSUPPORTED_TLS_VERSION"
    BROKER_NOT_TRUSTED = "BROKER_NOT_TRUSTED"
    NO_CERTIFICATE = "NO_CERTIFICATE"
    UNTRUSTED_ISSUER = "UNTRUSTED_ISSUER"
    TRUST_FULL = "TRUST_FULL"
    WRONG_PURPOSE = "WRONG_PURPOSE"
    WEAK_CERTIFICATE = "WEAK_CERTIFICATE"
    INVALID_IDENTITY = "INVALID_IDENTITY"
    IDENTITY_CHANGED = "IDENTITY_CHANGED"
    TRUST_CHANGED = "TRUST_CHANGED"
    CA_CERTIFICATE = "CA_CERTIFICATE"
    PATH_TOO_LONG = "PATH_TOO_LONG"
    WRONG_TRUST_DOMAIN = "WRONG_TRUST_DOMAIN"
    WRONG_ROLE = "WRONG_ROLE"
    WRONG_GROUP = "WRONG_GROUP"
    EXPIRED = "EXPIRED"
    LIFETIME_OVER = "LIFETIME_OVER"
    NOT_YET_VALID = "NOT_YET_VALID"
    REVOKED = "REVOKED"
    SUSPENDED = "SUSPENDED"
    ISSUER_REVOKED = "ISSUER_REVOKED"
    REVOCATION_STATUS_UNKNOWN = "REVOCATION_STATUS_UNKNOWN"
    CRL_MISSING = "CRL_MISSING"
    CRL_EXPIRED = "CRL_EXPIRED"
    OCSP_UNAVAILABLE = "OCSP_UNAVAILABLE"
    OCSP_UNKNOWN = "OCSP_UNKNOWN"
    CLIENT_ID_MISMATCH = "CLIENT_ID_MISMATCH"
    USERNAME_MISMATCH = "USERNAME_MISMATCH"
    CLIENT_ID_OF_ANOTHER = "CLIENT_ID_OF_ANOTHER"
    TOO_MANY_SESSIONS = "TOO_MANY_SESSIONS"
    WILL_NOT_PERMITTED = "WILL_NOT_PERMITTED"
    PUBLISH_NOT_PERMITTED = "PUBLISH_NOT_PERMITTED"
    SUBSCRIPTION_NOT_PERMITTED = "SUBSCRIPTION_NOT_PERMITTED"
    REFUSED_BY_PLUGIN = "REFUSED_BY_PLUGIN"
    PLUGIN_FAILED = "PLUGIN_FAILED"
    AUDIT_UNAVAILABLE = "AUDIT_UNAVAILABLE"
    UNSUPPORTED = "UNSUPPORTED"
    BAD_PACKET = "BAD_PACKET"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    STORE_FAILED = "STORE_FAILED"


RETRY_AFTER = "retry-after"
"""The user property of CONNACK and DISCONNECT that says after how many seconds to reconnect, like HTTP's header."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal: its stable code, the MQTT reason code to answer with, and one sentence for a person."""

    code: RefusalCode
    reason_code: ReasonCode
    detail: str
    identity: str = ""
    """The identity in the refused certificate, if it could be read; for the log."""
    serial: str = ""
    retry_after: float | None = None
    """After how many seconds to reconnect; None: what is usual for the code."""
    aside: str = ""
    """Additional details for the operator alone: a refused client is not told what the settings say."""

    @property
    def recorded(self) -> str:
        """What the operator sees: in log, history, audit log."""
        return f"{self.detail}: {self.aside}" if self.aside else self.detail

    @property
    def told(self) -> Properties:
        """What an MQTT 5 client is told."""
        return told(self.code, self.detail, after=self.retry_after)


def unauthorised(code: RefusalCode, detail: str) -> Refused:
    """Return the refusal of a client that may not do this and need not try again."""
    return Refused(code, ReasonCode.NOT_AUTHORIZED, detail)


def unavailable(code: RefusalCode, detail: str) -> Refused:
    """Return the refusal of a client that may perhaps do this, but not now."""
    return Refused(code, ReasonCode.SERVER_UNAVAILABLE, detail)


EXPIRED_SINCE = "the certificate, or that of a CA above it, has expired"
"""Said of a certificate that was valid in the handshake."""

_UNKNOWN_NOW = 30.0
"""Seconds: missing revocation data is looked for at least this often."""
_RETURNS_A_SECOND = 500
"""When the broker stops, its clients are told to reconnect one after the other, this many per second."""
_RETRY_AFTER: dict[str, float] = {
    RefusalCode.RATE_LIMITED: 10.0,
    RefusalCode.CRL_MISSING: _UNKNOWN_NOW,
    RefusalCode.CRL_EXPIRED: _UNKNOWN_NOW,
    RefusalCode.OCSP_UNAVAILABLE: _UNKNOWN_NOW,
    RefusalCode.OCSP_UNKNOWN: _UNKNOWN_NOW,
    RefusalCode.AUDIT_UNAVAILABLE: _UNKNOWN_NOW,
    RefusalCode.REVOCATION_STATUS_UNKNOWN: _UNKNOWN_NOW,
    RefusalCode.LIFETIME_OVER: 0.0,
    RefusalCode.TRUST_CHANGED: 0.0,
}


@lru_cache(64)
def told(code: str, detail: str, connected: int = 0, after: float | None = None) -> Properties:
    """Return the properties of CONNACK or DISCONNECT: *code* and *detail*, and when to reconnect.

    That is after *after* seconds, or what is usual for *code*; absent where reconnecting does not help or the time is
    unknown. The *connected* clients that are disconnected in turn when the broker stops are spread over time.
    """
    if after is None:
        stops = code == RefusalCode.SHUTTING_DOWN
        after = 1 + connected / _RETURNS_A_SECOND if stops else _RETRY_AFTER.get(code)
    hint = () if after is None else ((RETRY_AFTER, str(math.ceil(after))),)
    return Properties(reason_string=f"{code}: {detail}", user_properties=hint)
