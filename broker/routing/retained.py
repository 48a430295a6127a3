"""Retained messages: the last one of each topic, for later subscribers (MQTT 5 §3.3.1.3).

Rules
-----
1. No I/O, no clock: the time is passed in; an expired message is never returned, and `sweep` frees its room.
2. Bounded in number and bytes, except for the broker's own few `$SYS` figures: clients that fill their room do not
   displace those, nor do those use clients' room. What one device may retain is bounded too, so it cannot use all the
   room. A message that does not fit is not retained, and neither is the one that it replaces; it still goes to the
   present subscribers. A topic of many levels counts for its nodes in the tree of names, which may take a hundred times
   as much as the message (decision 0180), and a long one for its words (decision 0184).
3. A message remembers its publisher, for subscriptions with No Local [MQTT-3.8.3-3], and its number in the order in
   which messages were retained, so that a `Replay` returns exactly what was there when it began.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import structlog

from broker.mqtt.message import Message
from broker.mqtt.subscription import Subscription
from broker.mqtt.topics import text_bytes
from broker.routing.names import TopicNames
from broker.session.name import device_of
from provisioning.program.once_a_minute import OnceAMinute

log = structlog.get_logger("broker")

SWEPT_AT_ONCE = 2_000
"""Entries that one `sweep` looks at: a millisecond."""
_SHOWN = 200
_USUAL_LEVELS = 8
"""Levels of a topic that are free: nearly all topics have fewer, and most levels are shared."""
_LEVEL_BYTES = 320
"""What each further level costs in memory, with its word, if no other topic shares it: measured in Python 3.13."""
_USUAL_TEXT = 512
"""Bytes of a topic as text (`broker.mqtt.topics.text_bytes`) that are free besides its bytes in the message."""


@dataclass(slots=True)
class Room:
    """What one device has retained, or may retain."""

    messages: int
    bytes: int


@dataclass(slots=True)
class Retained:
    """A retained message, its publisher (`broker.session.name`; empty: the broker), its number.

    Never changed, and not frozen: a million are made at a start, and to make a frozen one takes three times as long.
    """

    message: Message
    publisher: str
    number: int


class RetainedMessages:
    """The retained message of each topic name."""

    __slots__ = (
        "_bytes",
        "_complaints",
        "_count",
        "_expiring",
        "_full",
        "_messages",
        "_of_devices",
        "_round",
        "bytes_limit",
        "device_limit",
        "last_number",
        "limit",
    )

    def __init__(self, limit: int, bytes_limit: int) -> None:
        self._messages: TopicNames[Retained] = TopicNames()
        self._bytes = 0
        """What the counted messages hold, with their places in the tree of names."""
        self._count = 0
        self._expiring = 0
        self._round: Iterator[Retained | None] = iter(())
        self._complaints = OnceAMinute()
        self._full = ""
        """The limit exceeded by the last message that did not fit."""
        self._of_devices: dict[str, Room] = {}
        self.limit = limit
        self.bytes_limit = bytes_limit
        self.device_limit = Room(limit, bytes_limit)
        self.last_number = 0
        """The number of the latest retained message."""

    def __len__(self) -> int:
        return len(self._messages)

    @property
    def count(self) -> int:
        """How many messages are counted: all but the broker's own figures."""
        return self._count

    def has(self, topic_name: str) -> bool:
        """Whether *topic_name* has a message, expired or not."""
        return self._messages.get(topic_name) is not None

    def retain(self, topic_name: str, message: Message, publisher: str = "") -> bool:
        """Keep *message*; an empty payload deletes the topic's message [MQTT-3.3.1-6]. Return False if it does not fit.

        The topic's previous message is removed in any case: it is out of date [MQTT-3.3.1-5], 3.1.1 [MQTT-3.3.1-7].
        """
        self._remove(topic_name)
        if not message.payload:
            return True
        if _counts(topic_name, publisher):
            cost = _cost(topic_name, message)
            self._full = self._exceeded(publisher, cost)
            if self._full:
                return False
            self._charge(publisher, cost)
        self._expiring += message.expires_at is not None
        self.last_number += 1
        self._messages.insert(topic_name, Retained(message, publisher, self.last_number))
        return True

    def restore(self, stored: Iterable[tuple[str, Message, str, int]]) -> None:
        """Keep what the store holds: topic name, message, publisher and number of each, sorted by topic names.

        To be called while nothing is kept. No limit applies.
        """
        self._messages.fill(self._restored(stored))

    def _restored(self, stored: Iterable[tuple[str, Message, str, int]]) -> Iterator[tuple[str, Retained]]:
        for topic_name, message, publisher, number in stored:
            if _counts(topic_name, publisher):
                self._charge(publisher, _cost(topic_name, message))
            self._expiring += message.expires_at is not None
            self.last_number = max(self.last_number, number)
            yield topic_name, Retained(message, publisher, number)

    def _charge(self, publisher: str, cost: int) -> None:
        self._count += 1
        self._bytes += cost
        if device := device_of(publisher):
            room = self._of_devices.get(device)
            if room is None:
                room = self._of_devices[device] = Room(0, 0)
            room.messages += 1
            room.bytes += cost

    def _exceeded(self, publisher: str, size: int) -> str:
        """Return the limit that a message of *size* bytes would exceed, empty for none."""
        if self._count >= self.limit:
            return "max_retained"
        if self._bytes + size > self.bytes_limit:
            return "max_retained_bytes"
        device = device_of(publisher)
        room = self._of_devices.get(device)
        if room is not None and room.messages >= self.device_limit.messages:
            return "max_retained_of_device"
        if device and size + (room.bytes if room else 0) > self.device_limit.bytes:
            return "max_retained_bytes_of_device"
        return ""

    def complain(self, topic_name: str, who: Mapping[str, str], now: float) -> None:
        """Log, at most once a minute, that what *who* published to *topic_name* did not fit, and why."""
        if self._complaints.happened(now):
            facts = {**who, "topic": topic_name[:_SHOWN], "limit": self._full}
            log.warning("message not retained", code="RETAINED_FULL", **facts, retained=self._count, bytes=self._bytes)

    def walk(self, topic_filter: str) -> Iterator[Retained | None]:
        """Yield what *topic_filter* matches, expired or not, while messages come and go; None for an empty step."""
        return self._messages.walk(topic_filter)

    def get(self, topic_name: str, now: float) -> Message | None:
        """Return the retained message of *topic_name*, or None if there is none that has not expired."""
        found = self._messages.get(topic_name)
        if found is None or (found.message.expires_at is not None and found.message.expires_at <= now):
            return None
        return found.message

    def all(self) -> list[Message]:
        """Return every message, expired or not, also of topics that begin with ``$``."""
        return [found.message for found in self._messages.all()]

    def expiring(self, number: int) -> Iterator[Message | None]:
        """Yield those with an expiry of the *number* first to be retained, expired or not; None for an empty step."""
        if self._expiring and number:
            for found in self._messages.everywhere():
                is_one = found is not None and found.number <= number and found.message.expires_at is not None
                yield found.message if found is not None and is_one else None

    def sweep(self, now: float) -> list[str]:
        """Remove those of the next few messages that have expired at *now*, in a continuing round; return their topics.

        Nothing is looked at while no message has an expiry.
        """
        gone: list[str] = []
        if not self._expiring:
            return gone
        looks = 0
        for found in islice(self._round, SWEPT_AT_ONCE):
            looks += 1
            if found is not None and found.message.expires_at is not None and found.message.expires_at <= now:
                gone.append(found.message.topic.decode())
        if looks < SWEPT_AT_ONCE:
            self._round = self._messages.everywhere()
        for topic_name in gone:
            self._remove(topic_name)
        return gone

    def _remove(self, topic_name: str) -> None:
        removed = self._messages.remove(topic_name)
        if removed is None:
            return
        self._expiring -= removed.message.expires_at is not None
        if _counts(topic_name, removed.publisher):
            cost = _cost(topic_name, removed.message)
            self._count -= 1
            self._bytes -= cost
            device = device_of(removed.publisher)
            room = self._of_devices.get(device)
            if room is not None:
                room.messages -= 1
                room.bytes -= cost
                if not room.messages:
                    del self._of_devices[device]


def _cost(topic_name: str, message: Message) -> int:
    """Return the bytes that *message* counts for: its content, and anything unusual about its topic in the tree."""
    deep = _LEVEL_BYTES * max(0, topic_name.count("/") + 1 - _USUAL_LEVELS)
    return message.size + deep + max(0, text_bytes(topic_name) - _USUAL_TEXT)


def _counts(topic_name: str, publisher: str) -> bool:
    return bool(publisher) or not topic_name.startswith("$SYS/")


class Replay:
    """What was retained when a client subscribed, returned one by one: a walk that may take long and stores nothing.

    A message that replaced another meanwhile reached the subscription when it was published, and is left out.
    """

    __slots__ = ("_again", "_reader", "_retained", "_sent", "_walk", "newest", "number", "subscription")

    def __init__(
        self,
        retained: RetainedMessages,
        subscription: Subscription,
        reader: str,
        *,
        newest: int | None = None,
        sent: frozenset[int] = frozenset(),
    ) -> None:
        """Begin for *subscription* of the session whose name is *reader*.

        One that was under way when the broker restarted continues with what was there then, up to number *newest*,
        except for what is in *sent*.
        """
        self._retained = retained
        self.newest = retained.last_number if newest is None else newest
        """The number of the last message that existed when it began."""
        self.number = 0
        """The number of the message that `look` returned last."""
        self._sent = sent
        self._reader = reader
        self._walk = retained.walk(subscription.topic_filter)
        self._again: Message | None = None
        self.subscription = subscription

    def put_back(self, message: Message) -> None:
        """Make *message* the next one again, unless another replaces it meanwhile."""
        self._again = message

    def look(self, now: float) -> Message | None:
        """Return the next message, or None if this step found none; raise `StopIteration` at the end."""
        again, self._again = self._again, None
        if again is not None and self._retained.get(again.topic.decode(), now) is again:
            return again
        found = next(self._walk)
        if found is None:
            return None
        message = found.message
        if message.expires_at is not None and message.expires_at <= now:
            return None
        if found.number > self.newest or found.number in self._sent:
            return None
        if self.subscription.no_local and found.publisher == self._reader:  # [MQTT-3.8.3-3]
            return None
        self.number = found.number
        return message
