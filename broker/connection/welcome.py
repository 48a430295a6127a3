"""The CONNACK of an admitted client.

Theory
------
To an older client it says hardly anything; an MQTT 5 client is told the limits, and each value that differs from its
request. The devices of a fleet ask for the same few things, so encoded packets are cached: to encode one takes 8 µs in
plain Python (benchmarks/hot_calls.py). That is a hundredth of a handshake, and nothing else here is made fast.

No I/O, no clock.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from broker.admission.admission import Admitted
from broker.mqtt.codes import ProtocolVersion, ReasonCode
from broker.mqtt.connect import Connack, Connect
from broker.mqtt.properties import Properties
from broker.settings.limits import Limits

_MOST_REMEMBERED: Final = 256
_OLDER: Final = {
    (version, present): Connack(ReasonCode.SUCCESS, present).encode(version)
    for version in (ProtocolVersion.V31, ProtocolVersion.V311)
    for present in (False, True)
}


def welcome(
    packet: Connect,
    limits: Limits,
    admitted: Admitted,
    keep_alive: int,
    session_expiry: int | None,
    *,
    present: bool = False,
    response: str | None = None,
) -> bytes:
    """Return the answer to *packet*.

    *keep_alive* (seconds) is what applies; *session_expiry* (seconds) is None where the client got what it asked for;
    *response* is its Response Information.
    """
    if packet.protocol_version is not ProtocolVersion.V5:
        return _OLDER[packet.protocol_version, present]
    assigned = admitted.client_id if admitted.assigned else None
    connack = _remembered if assigned is None and response is None else _encode
    return connack(
        present,
        session_expiry,
        keep_alive if keep_alive != packet.keep_alive else None,
        limits.max_inflight,
        limits.max_packet_size,
        limits.max_topic_alias,
        assigned,
        response,
    )


def _encode(
    present: bool,
    session_expiry: int | None,
    server_keep_alive: int | None,
    receive_maximum: int,
    maximum_packet_size: int,
    topic_alias_maximum: int,
    assigned: str | None,
    response: str | None,
) -> bytes:
    terms = Properties(
        session_expiry_interval=session_expiry,
        receive_maximum=receive_maximum,
        maximum_packet_size=maximum_packet_size,
        assigned_client_identifier=assigned,
        topic_alias_maximum=topic_alias_maximum or None,
        server_keep_alive=server_keep_alive,
        response_information=response,
    )
    return Connack(ReasonCode.SUCCESS, present, terms).encode(ProtocolVersion.V5)


_remembered = lru_cache(_MOST_REMEMBERED)(_encode)
