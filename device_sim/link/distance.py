"""How far away the broker is: round trips, and what the link loses, as the kernel knows them from a TCP connection.

Theory
------
Limits for times are those of a broker that is near. Over a satellite a round trip takes longer than many of them, and
each lost packet a retransmission timeout; neither is the broker's doing. The kernel's figures (TCP_INFO) do not depend
on the broker: the kernel of its machine acknowledges what its process has not read.

Rules
-----
1. Within `_NEAR` a link explains nothing. The kernel's usual round trip contains acknowledgements that are held back
   (40 ms), and what a rack loses is a fault to be found.
2. Whether it is far depends on the lowest round trip of a connection; how long it takes, on the highest usual one,
   since packets wait in the queue of a slow link.
3. A packet lost three times in a row costs seven retransmission timeouts: each is twice the one before.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Final

ADMISSION: Final = 3
"""Round trips of TCP, TLS 1.3, and CONNECT."""
_NEAR: Final = 0.01
_LOSSY: Final = 0.01
"""The share of the packets that a far link may lose, or let others overtake, before its losses explain anything."""
_ENOUGH_PACKETS: Final = 100
_THREE_LOSSES: Final = 7
_LONGEST: Final = 30.0
"""Seconds that are waited longer, at most: a link that needs more is not one to judge a broker across."""
_LEAST_VARIANCE: Final = 0.2
_UNKNOWN: Final = 0xFFFFFFFF
_TCP_INFO: Final = struct.Struct("=68xII24xI32xII4xI72xI")
"""Linux <linux/tcp.h>: rtt, rttvar, total_retrans, segs_out, segs_in, min_rtt, rcv_ooopack; microseconds."""


@dataclass(frozen=True, slots=True)
class Distance:
    """The lowest and the *usual* round trip and the *timeout* of a retransmission, in seconds; the share *lost*."""

    round_trip: float = 0.0
    usual: float = 0.0
    timeout: float = 0.0
    lost: float = 0.0
    packets: int = field(default=0, compare=False)
    """How many went both ways by then: the more, the better is known what is lost."""

    @property
    def is_far(self) -> bool:
        """Whether it explains anything (rule 1)."""
        return self.round_trip >= _NEAR

    @property
    def is_lossy(self) -> bool:
        """Whether it loses so much that this explains anything."""
        return self.is_far and self.lost > _LOSSY

    def or_worse(self, other: Distance) -> Distance:
        """Return the worse of the two in every respect."""
        return Distance(
            max(self.round_trip, other.round_trip),
            max(self.usual, other.usual),
            max(self.timeout, other.timeout),
            max(self.lost, other.lost),
            max(self.packets, other.packets),
        )

    def explains(self, round_trips: int) -> float:
        """Return how many seconds of a duration are the link's, if it needs so many *round_trips*."""
        if not self.is_far:
            return 0.0
        return round_trips * (self.usual + (_THREE_LOSSES * self.timeout if self.is_lossy else 0.0))

    def longest(self, round_trips: int) -> float:
        """Return how many seconds to wait longer for what needs *round_trips*, whatever was lost so far."""
        if not self.is_far:
            return 0.0
        return min(round_trips * (self.usual + _THREE_LOSSES * self.timeout), _LONGEST)

    def __str__(self) -> str:
        lossy = f", {self.lost:.1%} of the packets lost or overtaken" if self.lost else ""
        return f"round trip {self.round_trip * 1000:.0f} ms, at worst {self.usual * 1000:.0f}{lossy}"


NEARBY: Final = Distance()
"""No distance that explains anything, or none that is known."""


def distance_of(connected: socket.socket) -> Distance:
    """Return what the kernel knows by now; `NEARBY` when the connection has ended, or the kernel is too old."""
    try:
        told = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
    except OSError:
        return NEARBY
    if len(told) < _TCP_INFO.size:
        return NEARBY
    usual, variance, again, sent, received, lowest, overtaken = _TCP_INFO.unpack(told)
    if lowest == _UNKNOWN:
        return NEARBY
    packets = sent + received
    return Distance(
        lowest / 1e6,
        usual / 1e6,
        usual / 1e6 + max(_LEAST_VARIANCE, 4 * variance / 1e6),  # RFC 6298 §2, with the kernel's TCP_RTO_MIN.
        (again + overtaken) / packets if packets >= _ENOUGH_PACKETS else 0.0,
        packets,
    )
