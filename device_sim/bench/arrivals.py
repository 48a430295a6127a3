"""What one subscriber of a benchmark has received from each publisher, and what is missing, duplicated or reordered.

Rules
-----
1. A publisher numbers what it has handed to the broker. Counting starts at the first number received: earlier messages
   are not counted, and a loss after the last one received cannot be seen.
2. What a QoS allows is counted, but is not a fault: a loss at QoS 0, a duplicate at QoS 1. The QoS that counts is the
   lower of the publisher's and the subscription's.
3. With a shared subscription other members get a part: then an absent message is not missing, and nothing is out of
   order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from device_sim.bench.payload import Stamp
from device_sim.fleet.sequence import Arrival, SequenceCheck

_AT_LEAST_ONCE = 1


@dataclass(slots=True)
class Sender:
    """What has arrived from one publisher, first seen with number *first*."""

    first: int
    qos: int
    check: SequenceCheck = field(default_factory=SequenceCheck)


@dataclass(slots=True)
class Arrivals:
    """The arrivals from all publishers at one subscriber. *qos* is what the subscription was granted."""

    shared: bool = False
    qos: int = 0
    senders: dict[tuple[int, int], Sender] = field(default_factory=dict)
    duplicated: int = 0
    out_of_order: int = 0
    forbidden: int = 0
    """Duplicates where the QoS allows none."""

    def came(self, stamp: Stamp) -> None:
        """Record a message with *stamp*."""
        if not stamp.number:
            return
        key = (stamp.benchmark, stamp.client)
        sender = self.senders.get(key)
        if sender is None:
            sender = self.senders[key] = Sender(stamp.number, min(stamp.qos, self.qos))
        if stamp.number < sender.first:  # It was sent before counting began, and overtaken by a later one.
            self.out_of_order += not self.shared
            return
        arrival = sender.check.record(stamp.number - sender.first + 1)
        if arrival is Arrival.DUPLICATE:
            self.duplicated += 1
            self.forbidden += sender.qos != _AT_LEAST_ONCE
        elif arrival is Arrival.LATE:
            self.out_of_order += not self.shared

    @property
    def missing(self) -> int:
        """How many messages have not arrived, though a later one of their publisher has."""
        return 0 if self.shared else sum(sender.check.missing for sender in self.senders.values())

    @property
    def lost(self) -> int:
        """How many of those were guaranteed, by QoS 1 or 2."""
        return 0 if self.shared else sum(each.check.missing for each in self.senders.values() if each.qos)
