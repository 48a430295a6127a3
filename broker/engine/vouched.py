"""What the broker vouches for in a message's user properties: whose certificate stands behind it.

Theory
------
A backend that reads a message wants to know who sent it, and may not believe what the message says of itself. With
`stamp_publisher` the broker writes it into the MQTT 5 user properties of each message, from the certificate of the
connection: ``fleet-device`` (or ``fleet-service``, ``fleet-operator``: a service's name is no device's),
``fleet-group``, ``fleet-serial``, ``fleet-fingerprint`` (SHA-256 of the certificate). Presence events
(`broker.engine.presence`) carry the same. A name is one of the broker's own trust domain; whoever is of another is
named by the URI, lest a foreign CA's ``backend`` be taken for ours.

Rules
-----
1. These names are the broker's: what a client sends under one of them, in whatever case, of which a ligature and a
   long s are some, is taken out, also where the broker stamps nothing. So a backend can be told to believe them, once
   and for all.
2. Everything else passes unchanged and in order [MQTT-3.3.2-17], [MQTT-3.3.2-18].
3. No I/O, no clock. A message without properties costs nothing unless it is stamped.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from broker.admission.admission import Admission
from broker.admission.peer import Peer
from broker.mqtt.codes import PacketType
from broker.mqtt.properties import Owner, Properties, encode_properties
from broker.mqtt.wire import Reader
from provisioning.pki.identity import Identity, Role

_PREFIX = "fleet-"
_MOST_REMEMBERED = 4096
RESERVED = frozenset({f"{_PREFIX}{name}" for name in (*Role, "group", "serial", "fingerprint")})
"""User properties that only the broker writes."""


def without_reserved(properties: Properties) -> Properties:
    """Return *properties* without what only the broker may say."""
    if not properties.user_properties:
        return properties
    kept = tuple(pair for pair in properties.user_properties if pair[0].casefold() not in RESERVED)
    return properties if len(kept) == len(properties.user_properties) else replace(properties, user_properties=kept)


def stamp_of(admission: Admission, peer: Peer) -> bytes:
    """Return what vouches for *peer*, as user properties on the wire."""
    return _stamp(peer.identity, admission.name_of(peer.identity), peer.serial, peer.fingerprint)


def forwarded(properties: Properties, owner: Owner, stamp: bytes) -> bytes:
    """Return the properties that subscribers get, without their length, and with *stamp*, if there is one."""
    if not properties:
        return stamp
    kept = without_reserved(properties)
    kept = replace(kept, message_expiry_interval=None, topic_alias=None, subscription_identifiers=())
    return _encoded(kept, owner) + stamp


@lru_cache(_MOST_REMEMBERED)
def _stamp(identity: Identity, name: str, serial: str, fingerprint: bytes) -> bytes:
    """Return what a certificate says, as user properties on the wire; the same for all its messages."""
    facts = {
        str(identity.role): name,
        "group": identity.group,
        "serial": serial,
        "fingerprint": fingerprint.hex(),
    }
    pairs = tuple((f"{_PREFIX}{name}", value) for name, value in facts.items() if value)
    return _encoded(Properties(user_properties=pairs), PacketType.PUBLISH)


def _encoded(properties: Properties, owner: Owner) -> bytes:
    reader = Reader(encode_properties(properties, owner))
    return reader.take(reader.variable_integer("property length"), "properties")
