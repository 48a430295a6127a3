"""What a run must know of a message whose payload is the scenario's own: in a user property of MQTT 5.

Theory
------
A payload of the simulator's own states its number and its times, and ends in a seal (`payload`, `seal`). In another's
there is no place for them. A server must forward a message's user properties unaltered [MQTT-3.3.2-17], so they say it
instead::

    fleet-sim: NUMBER DUE SENT CRC

The first three as in `payload.Telemetry`, in decimal; the CRC, in eight hexadecimal digits, is that of the topic, of
these three and of the payload, and starts from the run's mark (`seal.key_of`). So a message is judged as any other:
what was altered, in the payload or here, under which topic it came, which one it is.

Rules
-----
1. One property, named `NAME`, exactly once. Others are not looked at: a broker may add its own.
2. A message without it is `UnreadableTelemetry`; the text says that a broker has to forward it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from zlib import crc32

from device_sim.telemetry.payload import Telemetry, UnreadableTelemetry

NAME = "fleet-sim"
_STAMP = re.compile(r"(\d{1,19}) (-?\d{1,19}) (-?\d{1,19}) ([0-9a-f]{8})", re.ASCII)


def stamp_of(payload: bytes, sequence: int, due_ns: int, sent_ns: int, key: int) -> Sequence[tuple[str, str]]:
    """Return the user properties of *payload*, sealed with *key*."""
    head = f"{sequence} {due_ns} {sent_ns}"
    return ((NAME, f"{head} {crc32(payload, crc32(head.encode(), key)):08x}"),)


def read_stamp(properties: Sequence[tuple[str, str]]) -> Telemetry:
    """Return what *properties* say of their message, whatever its seal; raise `UnreadableTelemetry`."""
    stamps = [value for name, value in properties if name == NAME]
    if len(stamps) != 1:
        raise UnreadableTelemetry(
            f"it has {len(stamps)} user properties {NAME!r} where one was sent: unless somebody else has published it, "
            "what is between device and backend must speak MQTT 5 and forward them unaltered [MQTT-3.3.2-17]"
        )
    found = _STAMP.fullmatch(stamps[0])
    if found is None:
        raise UnreadableTelemetry(f"its user property {NAME!r} is no longer readable: {stamps[0][:80]!r}")
    return Telemetry(int(found[1]), int(found[2]), int(found[3]), {})


def fits(properties: Sequence[tuple[str, str]], payload: bytes, key: int) -> bool:
    """Whether *payload* and *properties*, which `read_stamp` has read, are still what `stamp_of` made with *key*."""
    (stamp,) = (value for name, value in properties if name == NAME)
    head, _, crc = stamp.rpartition(" ")
    return crc == f"{crc32(payload, crc32(head.encode(), key)):08x}"
