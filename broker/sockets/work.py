"""How much has been done that costs more than its bytes: what portions are measured in (`broker.connection.portions`).

Theory
------
One turn of the event loop should end soon, whatever the clients ask. Bytes are bounded by reads, but a topic name of
140 bytes may be compared with six thousand places of the subscription tree, and a SUBSCRIBE of 30 begin a replay of
hundreds of messages. So whoever does such a thing adds what it costs, and whoever hands out turns looks at the
difference. The unit is one small packet that is acted on the obvious way (`broker.connection.handlers`), some 25 µs;
what the data path does by itself counts nothing. A count and no clock: the same bytes are cut at the same places, in
tests too.

Rules
-----
1. It only grows; what counts is the difference between two moments.
2. What is added is what was really done: one step may exceed a portion, but not by much, since each step has a bound of
   its own (levels of a topic, items of a packet, looks of a replay).
"""

from __future__ import annotations

from typing import Final

PORTION: Final = 128
"""Work of one client after which the others are served: a few milliseconds."""


class Work:
    """A count that only grows."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = 0
        """Packets acted on the obvious way, or what costs as much, since the start."""
