"""Messages that wait for a client that is away or slow: bounded, in order, without expired ones.

Rules
-----
1. The bytes are always bounded; the number of messages is for a client that is away. What does not fit is refused,
   newest first. Expired messages leave when their turn comes, or when their room is needed (`expired`): they keep
   nothing out. For a connected client, messages beyond the limit in number also count for their objects, which take
   thirty times as much as a message of a few bytes: a client that publishes to itself is never held as a publisher, and
   could otherwise queue a million.
2. First in, first out. No I/O, no clock: the time is passed in.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from broker.mqtt.message import Deliverable
from broker.session.patience import Patience

_LOOK_AGAIN = 1.0
_LOOKS_A_SECOND = 1_000
"""A full queue is searched for expired messages at most once a second; a long one less often."""
OBJECTS = 400
"""Bytes that a message takes besides its content: measured in Python 3.11."""


@dataclass(slots=True)
class QueueLimits:
    """How much a session may hold for a client that is away or slow: one object, shared by all sessions."""

    messages: int
    bytes: int
    inflight_bytes: int = 16 * 1024 * 1024
    """How many bytes of large messages may be sent and unacknowledged (`broker.session.inflight`)."""
    patience: Patience = field(default_factory=Patience)
    """Which sessions may hold publishers."""


class MessageQueue:
    """The queue of one session."""

    __slots__ = ("_bytes", "_expires_at", "_limits", "_look_at", "messages", "refused")

    def __init__(self, limits: QueueLimits) -> None:
        self.messages: deque[Deliverable] = deque()
        self._bytes = 0
        self._limits = limits
        self._expires_at = math.inf
        """When the first message expires, or earlier."""
        self._look_at = -math.inf
        self.refused = 0
        """How many messages did not fit."""

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[Deliverable]:
        return iter(self.messages)

    def append(self, message: Deliverable, *, away: bool) -> bool:
        """Add *message* and return True, or return False if it does not fit."""
        size = message.size
        beyond = len(self.messages) - self._limits.messages
        if beyond >= 0:
            if away or self._bytes + size + (beyond + 1) * OBJECTS > self._limits.bytes:
                return False
        elif self._bytes + size > self._limits.bytes:
            return False
        self.messages.append(message)
        self._bytes += size
        if message.expires_at is not None and message.expires_at < self._expires_at:
            self._expires_at = message.expires_at
        return True

    def expired(self, now: float) -> list[Deliverable]:
        """Take out what has expired at *now*, to make room; see `_LOOKS_A_SECOND`."""
        if now < self._expires_at or now < self._look_at:
            return []
        self._look_at = now + max(_LOOK_AGAIN, len(self.messages) / _LOOKS_A_SECOND)
        self._expires_at = math.inf
        kept: list[Deliverable] = []
        gone: list[Deliverable] = []
        for message in self.messages:
            expires_at = math.inf if message.expires_at is None else message.expires_at
            if expires_at <= now:
                gone.append(message)
                self._bytes -= message.size
            else:
                kept.append(message)
                self._expires_at = min(self._expires_at, expires_at)
        self.messages.clear()
        self.messages.extend(kept)
        return gone

    def look_again(self) -> None:
        """Take note that messages here may expire earlier than when they were added."""
        self._expires_at = self._look_at = -math.inf

    @property
    def full(self) -> dict[str, object]:
        """The limit that is exhausted, and how much is queued, for the log."""
        limit = "max_queued_messages" if len(self.messages) >= self._limits.messages else "max_queued_bytes"
        return {"queued": len(self.messages), "bytes": self._bytes, "limit": limit}

    def restore(self, message: Deliverable) -> None:
        """Add *message* from the store: it was acknowledged, so no limit applies now."""
        self.messages.append(message)
        self._bytes += message.size
        if message.expires_at is not None and message.expires_at < self._expires_at:
            self._expires_at = message.expires_at

    def popleft(self) -> Deliverable:
        """Take the oldest message out."""
        message = self.messages.popleft()
        self._bytes -= message.size
        return message

    @property
    def half_full(self) -> bool:
        """Whether publishers should be held."""
        return len(self.messages) >= self._limits.messages // 2 or self._bytes >= self._limits.bytes // 2

    @property
    def short(self) -> bool:
        """Whether held publishers may continue."""
        return len(self.messages) <= self._limits.messages // 8 and self._bytes <= self._limits.bytes // 8
