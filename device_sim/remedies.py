"""What to do about a broker that cannot be reached: from how the first connection ended to useful advice.

Rules
-----
1. Only for what a wrong option or a stopped broker explains. A refusal by the broker has its own explanation.
"""

from __future__ import annotations

from typing import Protocol

from device_sim.link.closure import SERVER_CERTIFICATE, Layer
from provisioning.pki.tls import SPEAKS_NO_TLS

_NO_TLS = frozenset(map(str.lower, SPEAKS_NO_TLS))
_NO_MQTT = "it speaks TLS there, and no MQTT: name the broker's port, usually 8883; or is it for --websocket?"
_NO_WEBSOCKET = "does MQTT over WebSocket listen there? --path says what it is asked for"
_OF_CODE: dict[tuple[str, str], str] = {
    (Layer.TCP, "refused"): "start the broker, or name where it listens",
    (Layer.TCP, "reset"): "is it the broker's port for TLS, usually 8883? One without TLS ends so, too",
    (Layer.TCP, "timeout"): "does a broker run there, and no firewall stand between?",
    (Layer.TLS, "timeout"): "is it the broker that listens there, and does it still run?",
    (Layer.TLS, "unknown_ca"): "the broker does not trust the CA of these certificates",
    (Layer.TLS, "certificate_required"): "the broker wants a client certificate: give one with its key",
    (Layer.WEBSOCKET, "not upgraded"): _NO_WEBSOCKET,
    (Layer.WEBSOCKET, "broken protocol"): _NO_WEBSOCKET,
    (Layer.MQTT, "broken protocol"): _NO_MQTT,
    (Layer.MQTT, "malformed"): _NO_MQTT,
}
_OF_NAMES = ("Hostname mismatch", "IP address mismatch")
_OF_DATES = ("certificate has expired", "certificate is not yet valid")
_OF_ANCHORS = ("self-signed certificate", "self signed certificate", "unable to get")


class Answer(Protocol):
    """How a connection ended: a `device_sim.link.closure.Closure`, or an attack's observation."""

    @property
    def layer(self) -> str:
        """The layer in which it ended, as in `Layer`."""

    @property
    def code(self) -> str:
        """The peer's code."""

    @property
    def reason(self) -> str:
        """The peer's words."""


def remedy(answer: Answer) -> str:
    """Return what the tester can do if *answer* ended the first connection; empty: no advice."""
    if answer.layer == Layer.TLS and answer.code in _NO_TLS:
        return "it speaks no TLS there: name the broker's port for TLS, usually 8883"
    if answer.code == SERVER_CERTIFICATE:
        if any(words in answer.reason for words in _OF_NAMES):
            return "--server-name says which name the broker's certificate bears"
        if any(words in answer.reason for words in _OF_ANCHORS):
            return "are the trust anchors those of this broker?"
        if any(words in answer.reason for words in _OF_DATES):
            return "renew the broker's certificate, or set this machine's clock"
    if answer.layer == Layer.TCP and answer.code == "closed" and "Protocol error" in answer.reason:
        return _NO_MQTT  # In paho's words.
    return _OF_CODE.get((answer.layer, answer.code), "")


def with_remedy(text: str, answer: Answer) -> str:
    """Return *text*, followed by what to do about *answer*."""
    return f"{text}; {found}" if (found := remedy(answer)) else text
