"""Published against received: every message must be accounted for.

Theory
------
A device knows which numbers it has published and which of them the broker has not acknowledged; the backend knows which
it has received. A message is *lost* if it was acknowledged and never received. One that was neither acknowledged nor
received was in flight when its device was cut off, and delivery was never promised. If its device was not cut off, and
the broker had the whole drain to acknowledge it, it is lost as well (MQTT 5 §4.3.2: the receiver must). One received
twice is *duplicated*, unless its device had sent it again: QoS 1 is at least once. One whose number its device never
reached is *forged*: somebody else published it under that name.

Rules
-----
1. No clock and no I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from device_sim.fleet.sequence import SequenceCheck


@dataclass(frozen=True, slots=True)
class Sent:
    """One device's account: how many messages it has published, which are unacknowledged, which it sent again."""

    published: int
    unacknowledged: frozenset[int]
    repeated: tuple[int, ...] = ()
    """Each number once per time it was sent again."""
    kept_waiting: bool = False
    """Whether what is unacknowledged stayed so for the whole drain on one intact connection: nothing excuses it."""


@dataclass(frozen=True, slots=True)
class Tally:
    """The sums over a fleet."""

    published: int = 0
    received: int = 0
    lost: int = 0
    in_flight: int = 0
    duplicated: int = 0
    out_of_order: int = 0
    forged: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.published + other.published,
            self.received + other.received,
            self.lost + other.lost,
            self.in_flight + other.in_flight,
            self.duplicated + other.duplicated,
            self.out_of_order + other.out_of_order,
            self.forged + other.forged,
        )

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, duplicated, reordered or forged."""
        return self.lost == self.duplicated == self.out_of_order == self.forged == 0

    def as_dict(self) -> dict[str, int]:
        """Return the fields for a JSON report."""
        return asdict(self)


def account(sent: Sent, check: SequenceCheck) -> Tally:
    """Return the tally of one device: published == received + lost + in flight."""
    missing = {number for first, last in check.gaps for number in range(first, min(last, sent.published) + 1)}
    missing.update(range(check.highest + 1, sent.published + 1))
    excused = frozenset[int]() if sent.kept_waiting else sent.unacknowledged
    expected = Counter(sent.repeated)
    received = sent.published - len(missing)
    return Tally(
        published=sent.published,
        received=received,
        lost=len(missing - excused),
        in_flight=len(missing & excused),
        duplicated=sum(max(0, times - expected[number]) for number, times in check.again.items()),
        out_of_order=check.late,
        forged=check.received - received,
    )


def has_all(sent: Sent, check: SequenceCheck) -> bool:
    """Return whether everything is received that the broker has acknowledged to the device."""
    if check.received == check.highest == sent.published:
        return True
    return not account(Sent(sent.published, sent.unacknowledged), check).lost


def is_complete(sent: Sent, check: SequenceCheck) -> bool:
    """Return whether everything that the device has published is acknowledged and received."""
    return not sent.unacknowledged and check.received == check.highest == sent.published


def total(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of *tallies*."""
    return sum(tallies, Tally())
