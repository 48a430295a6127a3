"""A topic that the scenario chooses for its telemetry, with placeholders: ``plant/{group}/{name}/data``.

Theory
------
A topic says whose a message is: to the backend of a run, and to the broker, whose policy lets each device publish under
its own name only. So every own topic has the device's name in it, as a level of its own, where policies can put a
placeholder too (``{device}`` in ours, ``%u`` in mosquitto's).

Rules
-----
1. ``{name}`` must be there; ``{group}`` is the group in the device's certificate. Each fills a level.
2. It is a topic name that any client may use: no wildcard, nothing below ``$``, no control character.
3. What a run itself sends below ``fleet/`` (presence, answers, commands) keeps its topics to itself.
"""

from __future__ import annotations

import re

from broker.mqtt.errors import MalformedPacket
from broker.mqtt.topics import ONE_LEVEL, SEPARATOR, check_topic_name, overlaps

NAME, GROUP = "{name}", "{group}"
RUNS_OWN = ("fleet/+/+/state", "fleet/+/+/ack", "fleet/+/+/cmd/#")
_LONGEST = 64 * "x"
"""The longest name of a device or of a group."""
_BRACES = re.compile(r"\{[^{}]*\}|[{}]")


def checked_topic(text: str) -> str:
    """Return *text* if it is an own topic; raise `ValueError` with the remedy if not."""
    levels = text.split(SEPARATOR)
    for found in _BRACES.findall(text):
        if found not in {NAME, GROUP}:
            raise ValueError(f"{found}: there is no such placeholder in a topic; these exist: {NAME}, {GROUP}")
        if found not in levels:
            raise ValueError(f"{found}: a placeholder fills a level of its own, as in plant/{found}/data")
    if NAME not in levels:
        raise ValueError(f"{text!r} does not say which device it is: write a level {NAME}, as in plant/{NAME}/data")
    try:
        check_topic_name(text)
        check_topic_name(topic_of(text, _LONGEST, _LONGEST))
    except MalformedPacket as error:
        raise ValueError(str(error)) from None
    if text.startswith("$"):
        raise ValueError(f"{text!r}: topics that begin with $ are the broker's own; begin it with another character")
    if not text.isprintable():
        raise ValueError(f"{text!r}: has a control character, which a broker may refuse; leave it out")
    if text.startswith("fleet/") and any(overlaps(pattern_of(text), taken) for taken in RUNS_OWN):
        raise ValueError(f"{text!r}: a run sends something else there; let it end differently, or begin with your own")
    return text


def topic_of(text: str, name: str, group: str) -> str:
    """Return the topic of the device *name* whose certificate says *group*."""
    return SEPARATOR.join({NAME: name, GROUP: group}.get(level, level) for level in text.split(SEPARATOR))


def pattern_of(text: str, group: str = ONE_LEVEL) -> str:
    """Return the filter for the topics of all devices of *group*, or of any."""
    return topic_of(text, ONE_LEVEL, group)
