"""A Dispatch: one message and the sessions that get it alike, one row of the store.

Theory
------
A command to a whole fleet is one message for each of its kept sessions. A row for each of them made the store the
slowest part of the broker (decision 0334). So a row lists sessions, and each of them has a *place* in it; `sequence` is
the number of the dispatch and that place in one, and names a delivery: it rises in the order in which a session gets
its messages, and is never used again. That a session has its message is a bit less in `left`.

Hot: `Dispatch.add`. Budget: with all else, 3 µs of the event loop for each of 200 sessions that are away;
benchmarks/kept_sessions.py measures it, decision 0334 holds the figures. Slow twin: a list of each session's messages,
in tests/properties/test_deliveries_properties.py.

Rules
-----
1. What is written does not change any more: `listed` are the places that were left when its batch was taken.
2. Alike means: QoS, retain flag, Subscription Identifiers, and the Shared Subscription that it came through.
3. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Any, Final

from broker.mqtt.message import PersonalMessage

PLACES: Final = 62
"""Sessions of one dispatch: their bits are an integer of SQLite's, and one of mypyc's that needs no memory."""
PLACE_BITS: Final = 6
_PLACE_MASK: Final = 63
_PACKED: Final = tuple(Struct(f"<{count}q") for count in range(PLACES + 1))
_THIN: Final = 4
"""How many times as many sessions as are left a row may list before it is written anew."""


class Dispatch:
    """One message for up to `PLACES` sessions."""

    __slots__ = ("left", "like", "listed", "message", "number", "sessions")

    def __init__(self, number: int, like: PersonalMessage | None, session: int) -> None:
        """Begin dispatch *number*, to the *session* with that row, of a delivery *like* all of it will be.

        None: it is in the store already.
        """
        self.number = number
        self.like = like
        self.message = 0 if like is None else like.message.row
        self.sessions = [session]
        """The rows of the sessions, by place; of no use once they are in the store."""
        self.left = 1
        """The places of those that are not done with it, as bits, …"""
        self.listed = 0
        """… and of those that are in the store, or about to be."""

    def add(self, session: int, stored: PersonalMessage) -> bool:
        """Add the session with that row, if it may get *stored*, of the same message, by this dispatch."""
        like, place = self.like, len(self.sessions)
        if (
            like is None
            or place == PLACES
            or self.left == 0  # It is struck from the batch already.
            or like.exactly_once != stored.exactly_once
            or like.retain != stored.retain
            or like.identifiers != stored.identifiers
            or like.share != stored.share
        ):
            return False
        self.sessions.append(session)
        self.left |= 1 << place
        stored.sequence = self.number << PLACE_BITS | place
        return True

    def finish(self, sequence: int) -> int:
        """Take note that the session at that place is done; return the places that are left."""
        left = self.left & ~(1 << (sequence & _PLACE_MASK))
        self.left = left
        return left

    @property
    def is_single(self) -> bool:
        """Whether one session is listed: when that is done, so is the dispatch."""
        return self.listed & (self.listed - 1) == 0

    def thin(self) -> bool:
        """Whether so few are left of a row in the store that it is to be written anew: taken as done."""
        if self.left.bit_count() * _THIN > self.listed.bit_count():
            return False
        self.listed = self.left
        return True

    def row(self) -> tuple[Any, ...]:
        """Return what the store has of it."""
        listed, sessions, like = self.listed, self.sessions, self.like
        if like is None:
            raise AssertionError("what is in the store is not written")
        if listed != (1 << len(sessions)) - 1:
            sessions = [session for place, session in enumerate(sessions) if listed >> place & 1]
        qos = 2 if like.exactly_once else 1
        return self.number, self.message, qos, like.retain, like.identifiers, like.share, listed, packed(sessions)


def packed(sessions: list[int]) -> bytes:
    """Return the rows of *sessions* as a row lists them."""
    return _PACKED[len(sessions)].pack(*sessions)


def unpacked(listed: int, sessions: bytes, left: int) -> Iterator[tuple[int, int]]:
    """Yield place and session of those that are *left*, from a row. Raises ValueError if no broker has written it."""
    if left <= 0 or left & ~listed or len(sessions) != 8 * listed.bit_count():
        raise ValueError("a delivery to other sessions than it lists")
    places = (place for place in range(PLACES) if listed >> place & 1)
    for place, session in zip(places, _PACKED[len(sessions) // 8].unpack(sessions), strict=True):
        if left >> place & 1:
            yield place, session


def thinned(listed: int, sessions: bytes, left: int) -> bytes:
    """Return *sessions*, as a row lists them, without those that are not *left*."""
    return packed([session for place, session in unpacked(listed, sessions, listed) if left >> place & 1])
