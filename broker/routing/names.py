"""Topic names with a value each, searchable by topic filter: the mirror image of the subscription tree.

Theory
------
Which retained messages a new subscription gets is a search from a filter to names. The walk visits the part of the tree
that the filter can reach, and can pause. Cached routes are searched another way, by their rarest word
(`broker.routing.cached`, whose slow twin this is).

Rules
-----
1. No I/O, no clock.
2. ``walk(filter)`` yields exactly the names that `broker.mqtt.topics.matches` accepts (property-tested).
3. A removed name leaves no empty node behind.
4. Most nodes are leaves: a million of them share one empty dict, which is never changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final, Generic, TypeVar

V = TypeVar("V")

_NO_CHILDREN: Final[dict[str, Any]] = {}
_WORDS: Final = 4096
"""How many words `fill` shares between names that have the same: the usual last levels of a fleet's topics."""


class _Node(Generic[V]):
    __slots__ = ("children", "value")

    def __init__(self) -> None:
        self.children: dict[str, _Node[V]] = _NO_CHILDREN
        self.value: V | None = None

    def child(self, level: str) -> _Node[V]:
        """Return the node of *level* below this one, made if need be."""
        found = self.children.get(level)
        if found is None:
            if self.children is _NO_CHILDREN:
                self.children = {}
            found = self.children[level] = _Node()
        return found


class TopicNames(Generic[V]):
    """A mapping from topic name to a value that is not None, searchable by topic filter."""

    __slots__ = ("_count", "_root")

    def __init__(self) -> None:
        self._root: _Node[V] = _Node()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def get(self, topic_name: str) -> V | None:
        """Return the value of *topic_name*, or None."""
        node = self._root
        for level in topic_name.split("/"):
            child = node.children.get(level)
            if child is None:
                return None
            node = child
        return node.value

    def insert(self, topic_name: str, value: V) -> V | None:
        """File *value* under *topic_name*; return the value it replaces, or None."""
        node = self._root
        for level in topic_name.split("/"):
            node = node.child(level)
        replaced = node.value
        node.value = value
        self._count += replaced is None
        return replaced

    def fill(self, named: Iterable[tuple[str, V]]) -> None:
        """Do the same for many, quickly if neighbours have all levels but the last in common, as in a sorted table."""
        above: str | None = None
        parent = self._root
        words: dict[str, str] = {}
        for topic_name, value in named:
            before, slash, last = topic_name.rpartition("/")
            if not slash:
                parent, above = self._root, None
            elif before != above:
                parent, above = self._root, before
                for level in before.split("/"):
                    parent = parent.child(level)
            known = words.get(last)
            if known is not None:
                last = known
            elif len(words) < _WORDS:
                words[last] = last
            node = parent.child(last)
            self._count += node.value is None
            node.value = value

    def remove(self, topic_name: str) -> V | None:
        """Remove *topic_name*; return its value, or None if it was not here."""
        path = [self._root]
        levels = topic_name.split("/")
        for level in levels:
            child = path[-1].children.get(level)
            if child is None:
                return None
            path.append(child)
        removed = path[-1].value
        if removed is None:
            return None
        path[-1].value = None
        self._count -= 1
        for depth in range(len(levels), 0, -1):
            if path[depth].value is not None or path[depth].children:
                break
            del path[depth - 1].children[levels[depth - 1]]
        return removed

    def walk(self, topic_filter: str) -> Iterator[V | None]:
        """Yield the value of every name that *topic_filter* matches, while names come and go.

        One that is removed before its turn is not yielded. Yields None for a step without a result, so that a caller
        that counts steps can bound its work.
        """
        yield from _found(self._root, topic_filter.split("/"), 0)

    def everywhere(self) -> Iterator[V | None]:
        """Walk like `walk` through every name, including those that begin with ``$``."""
        yield from _below(self._root, at_root=False)

    def all(self) -> list[V]:
        """Return the value of every name."""
        return [value for value in _below(self._root, at_root=False) if value is not None]


def _found(node: _Node[V], levels: list[str], depth: int) -> Iterator[V | None]:
    if depth == len(levels):
        yield node.value
        return
    level = levels[depth]
    if level == "#":
        yield from _below(node, at_root=depth == 0)
    elif level == "+":
        names = list(node.children)  # A copy: names may come and go during a walk.
        yield from _copied(len(names))
        for name in names:
            child = node.children.get(name)
            if child is not None and (depth > 0 or not name.startswith("$")):  # [MQTT-4.7.2-1]
                yield None
                yield from _found(child, levels, depth + 1)
    elif (literal := node.children.get(level)) is not None:
        yield from _found(literal, levels, depth + 1)


def _below(top: _Node[V], *, at_root: bool) -> Iterator[V | None]:
    # Iterative: clients choose the depth of topics, and must not be able to exhaust Python's stack.
    yield top.value
    if at_root:
        pending = [child for name, child in top.children.items() if not name.startswith("$")]
    else:
        pending = list(top.children.values())
    yield from _copied(len(pending))
    while pending:
        node = pending.pop()
        yield node.value
        if node.children:
            pending.extend(node.children.values())
            yield from _copied(len(node.children))


def _copied(children: int) -> Iterator[None]:
    """Yield empty steps, one for each batch of *children* that takes as long to copy as a step."""
    for _ in range(children >> 7):
        yield None
