"""A client that does not keep up: what is dropped for it, and what it has not acknowledged.

`without_qos0` runs once per write to such a client, and never for the others.
"""

from __future__ import annotations

import struct
import termios
from fcntl import ioctl
from typing import Final

from broker.metrics import Metrics
from broker.mqtt.introduction import Introduction

_QOS0_PUBLISH = 0x30
_RETAIN_BIT = 0xFE
_NUMBER: Final = struct.Struct("i")


def without_qos0(packets: list[bytes], metrics: Metrics) -> list[bytes]:
    """Return *packets* without the QoS 0 messages, which are counted as dropped.

    A packet that introduces a Topic Alias is kept: later packets rely on it.
    """
    kept = [
        packet for packet in packets if packet[0] & _RETAIN_BIT != _QOS0_PUBLISH or isinstance(packet, Introduction)
    ]
    metrics.dropped_slow_consumer += len(packets) - len(kept)
    return kept


def in_kernel(descriptor: int) -> int:
    """Return how many bytes accepted by the socket the peer has not acknowledged (tcp(7), SIOCOUTQ)."""
    (count,) = _NUMBER.unpack(ioctl(descriptor, termios.TIOCOUTQ, bytes(_NUMBER.size)))
    return int(count)
