"""What the broker vouches for in a message's user properties: the certificate of its publisher.

Theory
------
A backend that reads a message wants to know who sent it, and must not believe what the message claims. With
`stamp_publisher` the broker adds that to the MQTT 5 user properties of each message, from the connection's certificate:
``fleet-device`` (or ``fleet-service``, ``fleet-operator``, since a service's name is not a device's), ``fleet-group``,
``fleet-serial``, ``fleet-fingerprint`` (SHA-256 of the certificate). Presence events (`broker.engine.presence`) carry
the same. A bare name always belongs to the broker's own trust domain; a party of another domain is given as its URI, so
that a foreign CA's ``backend`` cannot be mistaken for ours.

Rules
-----
1. These names are reserved for the broker: a client's properties with one of them are removed, in any letter case
   (case folding also covers ligatures and the long s), even where the broker stamps nothing. So a backend can always
   rely on them.
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
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

_PREFIX = "fleet-"
_MOST_REMEMBERED = 4096
RESERVED = frozenset({f"{_PREFIX}{name}" for name in (*Role, "group", "serial", "fingerprint")})
"""User properties that only the broker writes."""


def without_reserved(properties: Properties) -> Properties:
    """Return *properties* without the reserved ones."""
    if not properties.user_properties:
        return properties
    kept = tuple(pair for pair in properties.user_properties if pair[0].casefold() not in RESERVED)
    return properties if len(kept) == len(properties.user_properties) else replace(properties, user_properties=kept)


def stamp_of(admission: Admission, peer: Peer) -> bytes:
    """Return the stamp that vouches for *peer*, as user properties on the wire."""
    return _stamp(peer.identity, admission.name_of(peer.identity), peer.serial, peer.fingerprint)


def forwarded(properties: Properties, owner: Owner, stamp: bytes) -> bytes:
    """Return the properties for subscribers, without their length field, plus *stamp*, if there is one."""
    if not properties:
        return stamp
    kept = without_reserved(properties)
    kept = replace(kept, message_expiry_interval=None, topic_alias=None, subscription_identifiers=())
    return _encoded(kept, owner) + stamp


@lru_cache(_MOST_REMEMBERED)
def _stamp(identity: Identity, name: str, serial: str, fingerprint: bytes) -> bytes:
    """Return a certificate's stamp as user properties on the wire; cached, as all its messages have the same."""
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
