"""Whether a message arrives as it was sent: each ends in a CRC-32 of its topic and of everything before it.

Theory
------
A number says which message has arrived, and nothing about its content: a broker that fills a buffer too early delivers
the number of one message with the values of another. To make the reading again, from seed, device and number, would
cost the receiver as much as it has cost the sender, and would say nothing of the times.

Rules
-----
1. The CRC starts from the run's mark, a random number, and the topic: what was sent under another topic, or in another
   run, also one with the same seed, does not fit.
2. It is against faults, not against forgers: whoever has seen a message can compute it. Any burst of 32 bits is found;
   of all other alterations one in four thousand million is not.
"""

from __future__ import annotations

from zlib import crc32

NAME = "crc"
WIDTH = 4
"""Bytes of the seal of a binary payload."""
BLANK = bytes(WIDTH)
_TEXT = b',"crc":"%08x"}'
_TEXT_WIDTH = len(_TEXT % 0)


def key_of(topic_name: str, mark: int) -> int:
    """Return what seals the messages of one topic in the run with this *mark*."""
    return crc32(topic_name.encode(), mark)


def sealed_object(text: bytes, key: int) -> bytes:
    """Return the JSON object in *text*, which is not empty, with its seal as the last field."""
    fields = text[:-1]
    return fields + _TEXT % crc32(fields, key)


def sealed_bytes(content: bytes, key: int) -> bytes:
    """Return *content* with its seal behind it."""
    return content + crc32(content, key).to_bytes(WIDTH, "big")


def is_intact(payload: bytes, key: int) -> bool:
    """Whether *payload*, sealed with *key*, is still what it was."""
    if payload[:1] == b"{":
        return payload[-_TEXT_WIDTH:] == _TEXT % crc32(payload[:-_TEXT_WIDTH], key)
    return payload[-WIDTH:] == crc32(payload[:-WIDTH], key).to_bytes(WIDTH, "big")
