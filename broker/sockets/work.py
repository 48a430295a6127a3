"""A count of expensive work, by which a client's work is divided into portions (`broker.connection.portions`).

Theory
------
One turn of the event loop should end soon, whatever the clients send. Reads bound the bytes; but a topic name of 140
bytes may be compared with six thousand nodes of the subscription tree, and a SUBSCRIBE of 30 bytes may begin a replay
of hundreds of messages. So code that does such work adds its cost here, and code that schedules turns looks at the
difference. The unit is one small packet handled in the straightforward way (`broker.connection.handlers`), some 25 µs;
what the data path handles itself counts nothing. It is a count and not a clock, so that the same bytes are always
divided at the same places, in tests too.

Rules
-----
1. The count only grows; what matters is the difference between two moments.
2. The work actually done is added. One step may exceed a portion, but not by much, since each step has its own bound
   (levels of a topic, items of a packet, looks of a replay).
"""

from __future__ import annotations

from typing import Final

PORTION: Final = 128
"""Work of one client after which other clients are served: a few milliseconds."""


class Work:
    """A count that only grows."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = 0
        """Packets handled in the straightforward way, or equivalent work, since the start."""
