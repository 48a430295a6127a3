"""The topic names that have a route, searchable by topic filter: quickly if one of its words is rare.

Theory
------
A changed subscription makes stale the routes that its filter matches. Walking a tree of names from the left takes as
many steps as there are names below the filter's first wildcard: for ``fleet/meters/+/m17/#`` every device of the group,
though ``m17`` occurs in three names. If each of ten thousand devices has such a filter, that is quadratic. So each name
is filed under each of its words, by position, and under its number of levels. What a filter matches is in the
intersection of those files, and finding it takes as many steps as the smallest of them has names (`steps`).

Rules
-----
1. No I/O, no clock.
2. `find` yields exactly the names that `broker.mqtt.topics.matches` accepts (property-tested).
3. A removed name leaves no empty file behind.
4. What `clear` drops is freed gradually, twice as much with each new name as that name adds. Freeing the files of
   14,000 names that share no word takes half a second, and 60 files of 60,000 names that share all words a tenth; and
   publishers choose the names. A name in a file counts as much as a file.
5. `bytes` is an estimate of the memory that names take: never much less than the real value (decision 0184).
"""

from __future__ import annotations

from typing import Any, Final

from broker.mqtt.topics import text_bytes

NAME_BYTES: Final = 150
"""What a name takes besides its own bytes: its object, its place among the routes and under its number of levels."""
LEVEL_BYTES: Final = 45
"""What it takes in the file of each of its words."""
WORD_BYTES: Final = 290
"""What a word takes besides its text: its file, and its place among the words."""
_Files = list[set[bytes]]


class CachedNames:
    """A set of topic names, encoded, searchable by topic filter."""

    __slots__ = ("_depths", "_gone", "_places", "bytes", "words")

    def __init__(self) -> None:
        self.bytes = 0
        """What the names and their files take in memory."""
        self.words = 0
        """The number of files by word."""
        self._places: list[dict[str, set[bytes]]] = []
        """For each position in a name: the names that have each word there."""
        self._depths: dict[int, set[bytes]] = {}
        """The names with each number of levels."""
        self._gone: list[dict[Any, set[bytes]]] = []
        """Dropped files that are still in memory."""

    def __len__(self) -> int:
        return sum(map(len, self._depths.values()))

    def insert(self, topic: bytes) -> None:
        """File *topic*, if it is not filed yet."""
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
        """Remove *topic* from every file, if it is there."""
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
        if levels[-1] == "#":  # It also matches the parent level (MQTT 5 §4.7.1.2).
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
        files, left = self._gone[-1], most
        while files and left > 0:
            word, file = files.popitem()
            size = max(1, len(file))
            if size > left:  # Names that share a word have a single, large file for that position.
                for _ in range(left):
                    file.pop()
                files[word] = file
            left -= size
        if not files:
            self._gone.pop()

    def _files(self, levels: list[str]) -> _Files | None:
        """Return the files whose intersection contains the names that *levels* match; None if one does not exist."""
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
