"""What one subscriber of a benchmark has got of each publisher, and what is missing, doubled, or out of order.

Rules
-----
1. A publisher numbers what it has handed to the broker. The first number that comes is where we came in: what was
   before is none of ours, and what is lost behind the last that came nobody has told us of.
2. What a QoS allows is counted, and is no fault: a loss at QoS 0, a duplicate at QoS 1. The QoS that counts is the
   lower of the publisher's and of the subscription's.
3. Of a shared subscription others get a part: then what does not come is not missing, and nothing is out of order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from device_sim.bench.payload import Stamp
from device_sim.fleet.sequence import Arrival, SequenceCheck

_AT_LEAST_ONCE = 1


@dataclass(slots=True)
class Sender:
    """What has come of one publisher, which was first met at number *first*."""

    first: int
    qos: int
    check: SequenceCheck = field(default_factory=SequenceCheck)


@dataclass(slots=True)
class Arrivals:
    """Of all publishers, at one subscriber. *qos* is what the subscription was granted."""

    shared: bool = False
    qos: int = 0
    senders: dict[tuple[int, int], Sender] = field(default_factory=dict)
    duplicated: int = 0
    out_of_order: int = 0
    forbidden: int = 0
    """Duplicates where the QoS allows none."""

    def came(self, stamp: Stamp) -> None:
        """Take note of a message that bears *stamp*."""
        if not stamp.number:
            return
        key = (stamp.benchmark, stamp.client)
        sender = self.senders.get(key)
        if sender is None:
            sender = self.senders[key] = Sender(stamp.number, min(stamp.qos, self.qos))
        if stamp.number < sender.first:  # It was sent before we came in, and is overtaken by what was sent later.
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
        """How many messages have not come, though a later one of their publisher has."""
        return 0 if self.shared else sum(sender.check.missing for sender in self.senders.values())

    @property
    def lost(self) -> int:
        """How many of those were promised: of QoS 1 and 2."""
        return 0 if self.shared else sum(each.check.missing for each in self.senders.values() if each.qos)
