"""Topic Names and Topic Filters: their syntax, and the only matcher of the repository.

Theory
------
A topic is a list of levels between slashes; a level may be empty, so ``/a`` has two. In a filter, ``+`` stands for
any one level and a final ``#`` for any number of levels, its parent included: ``a/#`` matches ``a``. A wildcard in the
first level does not match a name that begins with ``$`` [MQTT-4.7.2-1].

`matches` is the slow, straightforward reference that any faster structure must agree with. `covers` and `overlaps`
compare the *sets* of names that two filters match; they decide whether a permission includes a subscription, and
whether a prohibition affects it.

Rules
-----
1. `matches`, `covers` and `overlaps` expect text that has passed the checks.
2. A name is compared level by level, code point by code point: nothing is normalised [MQTT-4.7.3-4].
3. A Shared Subscription's filter is split by `SharedSubscription.parse` before it is matched or compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from broker.mqtt.errors import MalformedPacket
from broker.mqtt.wire import MAXIMUM_STRING

SEPARATOR: Final = "/"
ONE_LEVEL: Final = "+"
ANY_LEVELS: Final = "#"
_WILDCARDS: Final = (ONE_LEVEL, ANY_LEVELS)
_RESERVED_PREFIX: Final = "$"
_SHARE_PREFIX: Final = "$share/"
_SHOWN: Final = 80
_TEXT_HEAD: Final = 60
_WIDEST: Final = 4


def check_topic_name(topic_name: str) -> str:
    """Return *topic_name* if it is valid for publishing; otherwise raise `MalformedPacket` saying why."""
    _check_text("topic name", topic_name)
    if ONE_LEVEL in topic_name or ANY_LEVELS in topic_name:  # [MQTT-4.7.0-1], [MQTT-3.3.2-2]
        raise MalformedPacket(f"topic name {topic_name[:_SHOWN]!r}: a wildcard may only be in a topic filter")
    return topic_name


def check_topic_filter(topic_filter: str) -> str:
    """Return *topic_filter* if it is valid for subscribing; otherwise raise `MalformedPacket` saying why."""
    _check_text("topic filter", topic_filter)
    levels = topic_filter.split(SEPARATOR)
    if ANY_LEVELS in levels[:-1]:  # [MQTT-4.7.1-1]
        raise MalformedPacket(f"topic filter {topic_filter[:_SHOWN]!r}: '#' is only allowed as the last level")
    for level in levels:
        if len(level) > 1 and (ONE_LEVEL in level or ANY_LEVELS in level):  # [MQTT-4.7.1-1], [MQTT-4.7.1-2]
            raise MalformedPacket(f"topic filter {topic_filter[:_SHOWN]!r}: a wildcard must be a level of its own")
    return topic_filter


def _check_text(field: str, text: str) -> None:
    if not text:  # [MQTT-4.7.3-1]
        raise MalformedPacket(f"{field}: must be at least one character long")
    if "\0" in text:  # [MQTT-4.7.3-2]
        raise MalformedPacket(f"{field} {text[:_SHOWN]!r}: holds the null character")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # [MQTT-1.5.4-1]
        raise MalformedPacket(f"{field} {text[:_SHOWN]!r}: holds a surrogate, which UTF-8 cannot encode") from None
    if size > MAXIMUM_STRING:  # [MQTT-4.7.3-3]
        raise MalformedPacket(f"{field}: {size} bytes, {MAXIMUM_STRING} at most")


def text_bytes(text: str) -> int:
    """Return how many bytes *text* takes in memory at most.

    A topic is kept as text, one byte per character; but if one of them is not ASCII, each may take four (an emoji among
    65,000 letters), whatever its size in UTF-8 on the wire.
    """
    return _TEXT_HEAD + (len(text) if text.isascii() else _WIDEST * len(text))


def matches(topic_filter: str, topic_name: str) -> bool:
    """Say whether *topic_filter* matches *topic_name*."""
    filter_levels, name_levels = topic_filter.split(SEPARATOR), topic_name.split(SEPARATOR)
    if topic_name.startswith(_RESERVED_PREFIX) and filter_levels[0] in _WILDCARDS:
        return False  # [MQTT-4.7.2-1]
    for index, level in enumerate(filter_levels):
        if level == ANY_LEVELS:
            return True
        if index == len(name_levels) or level not in (ONE_LEVEL, name_levels[index]):
            return False
    return len(filter_levels) == len(name_levels)


def covers(outer: str, inner: str) -> bool:
    """Say whether *outer* matches every Topic Name that *inner* matches."""
    outer_levels, inner_levels = outer.split(SEPARATOR), inner.split(SEPARATOR)
    if inner.startswith(_RESERVED_PREFIX) and outer_levels[0] in _WILDCARDS:
        return False  # [MQTT-4.7.2-1]
    for index, level in enumerate(outer_levels):
        if level == ANY_LEVELS:
            return True
        if index == len(inner_levels):
            return False
        if inner_levels[index] == ANY_LEVELS:
            # *inner* matches the parent of its '#' too, and *outer* asks for more levels than that. An empty parent
            # does not matter, because no name is empty: '+/#' says the same as '#', and '/+/#' the same as '/#'.
            parent = SEPARATOR.join(inner_levels[:index])
            return not parent and outer_levels[index:] == [ONE_LEVEL, ANY_LEVELS]
        if level not in (ONE_LEVEL, inner_levels[index]):
            return False
    return len(outer_levels) == len(inner_levels)


def overlaps(one: str, other: str) -> bool:
    """Say whether there is a Topic Name that both filters match."""
    one_levels, other_levels = one.split(SEPARATOR), other.split(SEPARATOR)
    for first, second in ((one_levels[0], other), (other_levels[0], one)):
        if first in _WILDCARDS and second.startswith(_RESERVED_PREFIX):
            return False  # [MQTT-4.7.2-1]
    shared = min(len(one_levels), len(other_levels))
    for index in range(shared):
        mine, theirs = one_levels[index], other_levels[index]
        if ANY_LEVELS in (mine, theirs):
            return True
        if mine != theirs and ONE_LEVEL not in (mine, theirs):
            return False
    if len(one_levels) == len(other_levels):
        return True
    # The longer one may still match the parent of its '#'; that must be a name, and the empty text is not one.
    longer = max(one_levels, other_levels, key=len)
    return len(longer) == shared + 1 and longer[shared] == ANY_LEVELS and not (shared == 1 and longer[0] == "")


@dataclass(frozen=True, slots=True)
class SharedSubscription:
    """``$share/{share name}/{topic filter}``: one of the group's subscribers gets each message (MQTT 5 §4.8.2)."""

    share_name: str
    topic_filter: str

    @classmethod
    def parse(cls, topic_filter: str) -> Self | None:
        """Return the parts of *topic_filter*, or None if it is an ordinary one.

        Raises `MalformedPacket` if the text begins like a Shared Subscription but is not one.
        """
        if not topic_filter.startswith(_SHARE_PREFIX):
            return None
        share_name, _, shared_filter = topic_filter.removeprefix(_SHARE_PREFIX).partition(SEPARATOR)
        if not share_name:  # [MQTT-4.8.2-1]
            raise MalformedPacket(f"topic filter {topic_filter[:_SHOWN]!r}: the share name is empty")
        if ONE_LEVEL in share_name or ANY_LEVELS in share_name:  # [MQTT-4.8.2-2]
            raise MalformedPacket(f"topic filter {topic_filter[:_SHOWN]!r}: no wildcard is allowed in a share name")
        if not shared_filter:  # [MQTT-4.8.2-2]
            raise MalformedPacket(f"topic filter {topic_filter[:_SHOWN]!r}: a topic filter must follow the share name")
        return cls(share_name, check_topic_filter(shared_filter))

    def __str__(self) -> str:
        return f"{_SHARE_PREFIX}{self.share_name}{SEPARATOR}{self.topic_filter}"
