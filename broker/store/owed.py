"""QoS 1 messages that a client sends again while the store fails: each is routed once, and answered when it recovers.

Whether such a message was routed before is unknown: it may arrive twice, but must not be refused (decision 0094). Its
answer belongs to one connection, and waits there once, however often the client repeats itself.
"""

from __future__ import annotations

from enum import Enum, auto

from broker.store.batch import Answerable


class Again(Enum):
    """What is known of a message that was sent again."""

    NEW = auto()
    """Nothing: it is to be routed, and answered."""
    UNANSWERED = auto()
    """It was routed, and its answer was dropped with an earlier connection."""
    WAITS = auto()
    """It was routed, and its answer waits on this connection."""


class Owed:
    """The messages of one session."""

    __slots__ = ("_connection", "_routed", "_waiting")

    def __init__(self) -> None:
        self._connection: Answerable | None = None
        self._routed: set[int] = set()
        self._waiting: set[int] = set()
        """Those whose answers wait on that connection."""

    def again(self, packet_id: int, connection: Answerable) -> Again:
        """Take note that *packet_id* was sent again on *connection*; return what was known of it."""
        if connection is not self._connection:
            self._connection, self._waiting = connection, set()
        known = Again.NEW
        if packet_id in self._routed:
            known = Again.WAITS if packet_id in self._waiting else Again.UNANSWERED
        self._routed.add(packet_id)
        self._waiting.add(packet_id)
        return known

    def use_anew(self, packet_id: int) -> None:
        """Take note that *packet_id* names another message now."""
        self._routed.discard(packet_id)
