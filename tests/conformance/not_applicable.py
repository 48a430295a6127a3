"""The statements without a test, each with the reason.

A client's duty is listed here only where a broker cannot tell whether it was kept; where it can, the broker's answer to
its breach is tested instead.
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Kind(Enum):
    """Why a statement has no test."""

    CLIENT = "client"
    TRANSPORT = "transport"
    NOT_OFFERED = "not offered"


KINDS: Final = {
    Kind.CLIENT: "client's duty",
    Kind.TRANSPORT: "transport",
    Kind.NOT_OFFERED: "not offered",
}

_UNSEEN: Final = "only the client knows whether it does; nothing the broker receives is wrong if it does not"
_ALL_QOS: Final = "the broker supports QoS 0, 1 and 2, and never sends a Maximum QoS"
_NO_AUTH: Final = "enhanced authentication is refused (MQTT-4.12.0-1): the certificate authenticates, no AUTH is sent"
_NO_METHOD: Final = "no connection with an authentication method exists (MQTT-4.12.0-1)"
_RELIABLE: Final = "the broker listens on TLS over TCP; the tests in tests/integration/broker use it"

NOT_APPLICABLE: Final[dict[tuple[str, str], tuple[Kind, str]]] = {
    ("mqtt5", "3.1.2-20"): (Kind.CLIENT, "what the broker does when it hears nothing is MQTT-3.1.2-22"),
    ("mqtt5", "3.1.2-21"): (Kind.CLIENT, "the broker holds it to that value: MQTT-3.2.2-22"),
    ("mqtt5", "3.1.2-30"): (Kind.CLIENT, "such a CONNECT is refused at once: MQTT-4.12.0-1"),
    ("mqtt5", "3.2.2-4"): (Kind.CLIENT, _UNSEEN),
    ("mqtt5", "3.2.2-5"): (Kind.CLIENT, _UNSEEN),
    ("mqtt5", "3.2.2-9"): (Kind.NOT_OFFERED, _ALL_QOS),
    ("mqtt5", "3.2.2-10"): (Kind.NOT_OFFERED, _ALL_QOS),
    ("mqtt5", "3.2.2-11"): (Kind.NOT_OFFERED, _ALL_QOS),
    ("mqtt5", "3.2.2-12"): (Kind.NOT_OFFERED, _ALL_QOS),
    ("mqtt5", "3.2.2-13"): (Kind.NOT_OFFERED, "the broker always retains, wills too: MQTT-3.1.2-15"),
    ("mqtt5", "3.2.2-14"): (Kind.NOT_OFFERED, "the broker always retains, and never sends Retain Available 0"),
    ("mqtt5", "3.2.2-21"): (Kind.CLIENT, "the broker holds it to that value: MQTT-3.2.2-22"),
    ("mqtt5", "3.3.2-10"): (Kind.CLIENT, _UNSEEN),
    ("mqtt5", "3.3.4-8"): (Kind.CLIENT, _UNSEEN),
    ("mqtt5", "3.15.2-2"): (Kind.NOT_OFFERED, _NO_AUTH),
    ("mqtt5", "3.15.2-3"): (Kind.NOT_OFFERED, _NO_AUTH),
    ("mqtt5", "4.2.0-1"): (Kind.TRANSPORT, _RELIABLE),
    ("mqtt5", "4.5.0-2"): (Kind.CLIENT, "until it does, the message stays unacknowledged: MQTT-4.3.2-3"),
    ("mqtt5", "4.12.0-2"): (Kind.NOT_OFFERED, _NO_AUTH),
    ("mqtt5", "4.12.0-3"): (Kind.CLIENT, _NO_AUTH),
    ("mqtt5", "4.12.0-5"): (Kind.NOT_OFFERED, _NO_METHOD),
    ("mqtt5", "4.12.1-1"): (Kind.CLIENT, _NO_METHOD),
    ("mqtt5", "4.12.1-2"): (Kind.NOT_OFFERED, _NO_METHOD),
    ("mqtt311", "2.3.1-2"): (
        Kind.CLIENT,
        "an identifier of 0 is refused (MQTT-2.3.1-1); the broker keeps no list of others",
    ),
    ("mqtt311", "2.3.1-3"): (Kind.CLIENT, "the same rule for the broker is MQTT-2.3.1-4"),
    ("mqtt311", "3.1.2-23"): (Kind.CLIENT, "what the broker does when it hears nothing is MQTT-3.1.2-24"),
    ("mqtt311", "3.1.3-7"): (Kind.CLIENT, "the broker's answer to its breach is MQTT-3.1.3-8"),
    ("mqtt311", "3.8.3-2"): (Kind.NOT_OFFERED, "the broker supports wildcards"),
    ("mqtt311", "3.14.4-1"): (Kind.CLIENT, "the broker closes the connection itself: MQTT-3.14.4-2"),
    ("mqtt311", "4.5.0-2"): (Kind.CLIENT, "until it does, the message stays unacknowledged: MQTT-4.3.2-1"),
    ("mqtt311", "7.0.0-1"): (Kind.NOT_OFFERED, "the broker opens no connection to other servers"),
    ("mqtt311", "7.0.0-2"): (Kind.TRANSPORT, "nothing but MQTT is spoken; other clients are run in tests/integration"),
    ("mqtt311", "7.1.1-1"): (Kind.TRANSPORT, _RELIABLE),
    ("mqtt311", "7.1.2-1"): (Kind.CLIENT, _UNSEEN),
}
