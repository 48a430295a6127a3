"""The topic names that have a route, found by topic filter: at once where one of its words is rare.

Theory
------
A changed subscription makes the routes stale that its filter matches. To walk a tree of names from the left costs as
many steps as there are names below the filter's first wildcard: for ``fleet/meters/+/m17/#`` every device of the group,
though ``m17`` stands in three names. When each of ten thousand devices has such a filter of its own, that is quadratic.
So each name is filed under each of its words, by place, and under the number of its levels. What a filter matches is
in all files that the filter names, and to find it costs as many steps as the smallest of them has names (`steps`).

Rules
-----
1. No I/O, no clock.
2. `find` yields exactly the names that `broker.mqtt.topics.matches` accepts (property-tested).
3. A removed name leaves no empty file behind.
4. What `clear` forgets is let go by and by, twice as much with each new name as that adds: to free the files of 14,000
   names that share no word takes half a second, and whoever publishes chooses the names.
5. `bytes` is what the names take, reckoned and not measured: never much less than it is (decision 0184).
"""

from __future__ import annotations

from typing import Any, Final

from broker.mqtt.topics import text_bytes

NAME_BYTES: Final = 150
"""What a name takes beside its own bytes: its head, and its places among the routes and by its number of levels."""
LEVEL_BYTES: Final = 45
"""What it takes in the file of each of its words."""
WORD_BYTES: Final = 290
"""What a word takes beside its text: its file, and its place among the words."""
_Files = list[set[bytes]]


class CachedNames:
    """A set of topic names, encoded, searchable by topic filter."""

    __slots__ = ("_depths", "_gone", "_places", "bytes", "words")

    def __init__(self) -> None:
        self.bytes = 0
        """What the names and their files take in memory."""
        self.words = 0
        """How many files there are by word."""
        self._places: list[dict[str, set[bytes]]] = []
        """For each place in a name: which names have which word there."""
        self._depths: dict[int, set[bytes]] = {}
        """Which names have how many levels."""
        self._gone: list[dict[Any, set[bytes]]] = []
        """Files that were forgotten, and are in memory still."""

    @property
    def forgotten(self) -> int:
        """How many files were forgotten and are in memory still."""
        return sum(map(len, self._gone))

    def __len__(self) -> int:
        return sum(map(len, self._depths.values()))

    def insert(self, topic: bytes) -> None:
        """File *topic*, unless it is."""
        words = topic.decode().split("/")
        if self._gone:
            self._let_go(2 * len(words))
        if topic in self._depths.get(len(words), ()):
            return
        places = self._places
        while len(places) < len(words):
            places.append({})
        for place, word in enumerate(words):
            file = places[place].get(word)
            if file is None:
                places[place][word] = {topic}
                self.words += 1
                self.bytes += WORD_BYTES + text_bytes(word)
            else:
                file.add(topic)
        self.bytes += NAME_BYTES + len(topic) + LEVEL_BYTES * len(words)
        self._depths.setdefault(len(words), set()).add(topic)

    def remove(self, topic: bytes) -> None:
        """Take *topic* out of every file, if it is there."""
        words = topic.decode().split("/")
        if topic not in self._depths.get(len(words), ()):
            return
        for place, word in enumerate(words):
            file = self._places[place][word]
            file.remove(topic)
            if not file:
                del self._places[place][word]
                self.words -= 1
                self.bytes -= WORD_BYTES + text_bytes(word)
        self.bytes -= NAME_BYTES + len(topic) + LEVEL_BYTES * len(words)
        depth = self._depths[len(words)]
        depth.remove(topic)
        if not depth:
            del self._depths[len(words)]

    def steps(self, topic_filter: str) -> int:
        """Return how many names `find` looks at."""
        files = self._files(topic_filter.split("/"))
        if files is None:
            return 0
        return min(map(len, files)) if files else len(self)

    def find(self, topic_filter: str) -> list[bytes]:
        """Return every name that *topic_filter* matches."""
        levels = topic_filter.split("/")
        files = self._files(levels)
        if files is None:
            return []
        if files:
            files.sort(key=len)
            found = list(files[0].intersection(*files[1:]))
        else:
            found = [topic for depth in self._depths.values() for topic in depth]
        if levels[0] in {"+", "#"}:  # [MQTT-4.7.2-1]
            found = [topic for topic in found if not topic.startswith(b"$")]
        if levels[-1] == "#":  # Which matches the level above it too (MQTT 5 §4.7.1.2).
            least = len(levels) - 2
            found = [topic for topic in found if topic.count(b"/") >= least]
        return found

    def clear(self) -> None:
        """Forget every name."""
        self.words = self.bytes = 0
        if self._depths:
            self._gone += [self._depths, *self._places]
        self._places, self._depths = [], {}

    def _let_go(self, most: int) -> None:
        files = self._gone[-1]
        for _ in range(min(most, len(files))):
            files.popitem()
        if not files:
            self._gone.pop()

    def _files(self, levels: list[str]) -> _Files | None:
        """Return the files in all of which a name is that *levels* match; None if one of them does not exist."""
        files: _Files = []
        for place, level in enumerate(levels):
            if level == "#":
                return files
            if level != "+":
                file = self._places[place].get(level) if place < len(self._places) else None
                if file is None:
                    return None
                files.append(file)
        depth = self._depths.get(len(levels))
        if depth is None:
            return None
        files.append(depth)
        return files
