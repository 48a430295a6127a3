"""Case 19 of `fleet-sim delivery`: which topics a filter matches, level by level and character by character.

MQTT 5 §4.7; 3.1.1 §4.7. A device's filters are below its commands: topics that begin with ``$`` or a wildcard are out
of its reach.
"""

from __future__ import annotations

from broker.mqtt.codes import QoS
from device_sim.attack.case import Chapter
from device_sim.attack.good_client import Parties
from device_sim.attack.owed import owed, said_at
from device_sim.attack.target import BrokenPromise

_COMPOSED, _DECOMPOSED = "cmd/\u00e9", "cmd/e\u0301"

chapter = Chapter()


def _matching(
    name: str, description: str, clause: str, topic_filter: str, matched: tuple[str, ...], others: tuple[str, ...]
) -> None:
    @owed(chapter, name, description, clause, older=clause)
    async def _(parties: Parties) -> None:
        device, sender = await parties.device(), await parties.service("sender")
        await device.subscribe(parties.topic(device, topic_filter), QoS.AT_LEAST_ONCE)
        for topic in (*matched, *others):
            await sender.publish(parties.topic(device, topic), topic.encode())
        await device.until_came(len(matched), f"not all came that {topic_filter} matches")
        await device.settled()
        said = {topic.encode(): topic for topic in (*matched, *others)}
        for each in device.came:
            topic = said_at(each, said)
            if topic not in matched:
                raise BrokenPromise(f"{topic_filter} does not match {topic}, which came")
            if each.topic != parties.topic(device, topic):
                raise BrokenPromise(f"published to {topic}, it came at {each.topic}")
        if len(device.came) != len(matched):
            raise BrokenPromise(f"{len(device.came)} messages came, and {topic_filter} matches {len(matched)} of them")


_matching(
    "19-one-level", "subscribes to cmd/+: it gets what is one level below, also an empty level, and nothing else",
    "§4.7.1.3", "cmd/+", ("cmd/a", "cmd/"), ("cmd", "cmd/a/b", "cmd//"),
)  # fmt: skip
_matching(
    "19-all-levels", "subscribes to cmd/#: it gets what is below at any depth, and at cmd itself", "§4.7.1.2", "cmd/#",
    ("cmd", "cmd/a", "cmd/a/b/c/d/e", "cmd/", "cmd//"), (),
)  # fmt: skip
_matching(
    "19-level-between",
    "subscribes to cmd/+/c: it gets what has one level between, also an empty one",
    "§4.7.1.3",
    "cmd/+/c",
    ("cmd/a/c", "cmd//c"),
    ("cmd/c", "cmd/a/c/d", "cmd/a/b/c", "cmd/a/C"),
)
_matching(
    "19-both-wildcards", "subscribes to cmd/+/c/#: both wildcards apply", "§4.7.1", "cmd/+/c/#",
    ("cmd/a/c", "cmd/b/c/d", "cmd/b/c/d/e"), ("cmd/c", "cmd/a/d", "cmd/a/cc"),
)  # fmt: skip
_matching(
    "19-exact", "subscribes to cmd/open: it gets messages of that topic, and of no similar one",
    "MQTT-4.7.3-4, §4.7.3", "cmd/open", ("cmd/open",),
    ("cmd/Open", "cmd/open/", "cmd/ope", "cmd/opens", "cmd//open"),
)  # fmt: skip
_matching(
    "19-space", "subscribes to a topic with a space: it gets messages of that topic",
    "§4.7.3", "cmd/open door", ("cmd/open door",), ("cmd/open", "cmd/opendoor", "cmd/open  door"),
)  # fmt: skip
_matching(
    "19-no-normalising",
    "subscribes to a letter with an accent: it gets nothing of the same letter in another encoding",
    "MQTT-4.7.3-4",
    _COMPOSED,
    (_COMPOSED,),
    (_DECOMPOSED, "cmd/e", "cmd/\u00c9"),
)
_matching(
    "19-dollar-inside", "subscribes to cmd/+: it gets a level that begins with $ and is not the first",
    "MQTT-4.7.2-1", "cmd/+", ("cmd/$open", "cmd/$"), (),
)  # fmt: skip
_matching(
    "19-long-topic", "subscribes to cmd/#: it gets messages of topics of 600 bytes", "§4.7.3", "cmd/#",
    ("cmd/" + "a" * 600, "cmd/" + "b" * 600), (),
)  # fmt: skip
