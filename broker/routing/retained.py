"""Retained messages: the last one of each topic, for those who subscribe later (MQTT 5 §3.3.1.3).

Rules
-----
1. No I/O, no clock: the time is passed in; an expired message is never given out.
2. Bounded in number and bytes; a message that does not fit is not retained, nor is the one that it replaces, and it
   still goes to the present subscribers.
"""

from __future__ import annotations

from broker.mqtt.message import Message
from broker.routing.names import TopicNames


class RetainedMessages:
    """The retained message of each topic name."""

    __slots__ = ("_bytes", "_messages", "bytes_limit", "limit")

    def __init__(self, limit: int, bytes_limit: int) -> None:
        self._messages: TopicNames[Message] = TopicNames()
        self._bytes = 0
        self.limit = limit
        self.bytes_limit = bytes_limit

    def __len__(self) -> int:
        return len(self._messages)

    def retain(self, topic_name: str, message: Message) -> bool:
        """Keep *message*; an empty payload forgets the topic's message [MQTT-3.3.1-6]. Return False if it does not fit.

        What the topic had retained is gone in any case: it is out of date [MQTT-3.3.1-5], 3.1.1 [MQTT-3.3.1-7].
        """
        replaced = self._messages.remove(topic_name)
        if replaced is not None:
            self._bytes -= replaced.size
        if not message.payload:
            return True
        if len(self._messages) >= self.limit or self._bytes + message.size > self.bytes_limit:
            return False
        self._insert(topic_name, message)
        return True

    def find(self, topic_filter: str, now: float) -> list[Message]:
        """Return the retained messages that *topic_filter* matches and that have not expired."""
        found = self._messages.find(topic_filter)
        expired = [m for m in found if m.expires_at is not None and m.expires_at <= now]
        if expired:
            for message in expired:
                self._messages.remove(message.topic.decode())
                self._bytes -= message.size
            found = [m for m in found if m.expires_at is None or m.expires_at > now]
        return found

    def get(self, topic_name: str, now: float) -> Message | None:
        """Return the retained message of *topic_name*, or None if there is none that has not expired."""
        message = self._messages.get(topic_name)
        return None if message is None or (message.expires_at is not None and message.expires_at <= now) else message

    def all(self) -> list[Message]:
        """Return every message, expired or not, of topics that begin with ``$`` too."""
        return self._messages.all()

    def _insert(self, topic_name: str, message: Message) -> None:
        self._messages.insert(topic_name, message)
        self._bytes += message.size
