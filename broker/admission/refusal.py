"""Why somebody is not let in, or is put out: one stable code, the same in log, metric, reason string and test."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from broker.mqtt.codes import ReasonCode


class RefusalCode(StrEnum):
    """Stable codes. Never renamed: operators' alerts and dashboards are made of them."""

    TLS_HANDSHAKE_FAILED = "TLS_HANDSHAKE_FAILED"
    HANDSHAKE_TIMEOUT = "HANDSHAKE_TIMEOUT"
    CONNECT_TIMEOUT = "CONNECT_TIMEOUT"
    TOO_MANY_CONNECTIONS = "TOO_MANY_CONNECTIONS"
    RATE_LIMITED = "RATE_LIMITED"
    FLAPPING = "FLAPPING"
    CLONE_SUSPECTED = "CLONE_SUSPECTED"
    NOT_TLS = "NOT_TLS"
    UNSUPPORTED_TLS_VERSION = "UNSUPPORTED_TLS_VERSION"
    BROKER_NOT_TRUSTED = "BROKER_NOT_TRUSTED"
    NO_CERTIFICATE = "NO_CERTIFICATE"
    UNTRUSTED_ISSUER = "UNTRUSTED_ISSUER"
    WRONG_PURPOSE = "WRONG_PURPOSE"
    WEAK_CERTIFICATE = "WEAK_CERTIFICATE"
    INVALID_IDENTITY = "INVALID_IDENTITY"
    IDENTITY_CHANGED = "IDENTITY_CHANGED"
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
    UNSUPPORTED = "UNSUPPORTED"
    BAD_PACKET = "BAD_PACKET"
    SHUTTING_DOWN = "SHUTTING_DOWN"


@dataclass(frozen=True, slots=True)
class Refused:
    """A refusal: its stable code, the MQTT reason code to answer with, and one sentence for a person."""

    code: RefusalCode
    reason_code: ReasonCode
    detail: str
    identity: str = ""
    """Whom the refused certificate names, if that could be read; for the log."""
    serial: str = ""

    @property
    def reason_string(self) -> str:
        """What an MQTT 5 client is told."""
        return f"{self.code}: {self.detail}"
