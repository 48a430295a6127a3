"""Names found by filter."""

from __future__ import annotations

from typing import TypeVar

from broker.routing.names import TopicNames

V = TypeVar("V")


def found(names: TopicNames[V], topic_filter: str) -> list[V]:
    return [value for value in names.walk(topic_filter) if value is not None]


def test_a_name_is_found_replaced_and_removed() -> None:
    names: TopicNames[int] = TopicNames()
    assert names.insert("a/b", 1) is None
    assert names.insert("a/b", 2) == 1
    assert (names.get("a/b"), names.get("a"), names.get("a/b/c")) == (2, None, None)
    assert names.remove("a") is None
    assert names.remove("a/b/c") is None
    assert names.remove("a/b") == 2
    assert names.remove("a/b") is None
    assert len(names) == 0
    assert names._root.children == {}


def test_finding_by_filter() -> None:
    names: TopicNames[str] = TopicNames()
    for name in ("a", "a/b", "a/b/c", "a/", "$SYS/a", "/a"):
        names.insert(name, name)
    assert sorted(found(names, "#")) == ["/a", "a", "a/", "a/b", "a/b/c"]
    assert sorted(found(names, "a/#")) == ["a", "a/", "a/b", "a/b/c"]
    assert sorted(found(names, "+/+")) == ["/a", "a/", "a/b"]
    assert found(names, "$SYS/#") == ["$SYS/a"]
    assert found(names, "b") == []


def test_a_name_of_many_levels_costs_no_stack() -> None:
    names: TopicNames[int] = TopicNames()
    deep = "/" * 60_000
    names.insert(deep, 1)
    assert found(names, "#") == [1]
    assert found(names, "/#") == [1]
    assert names.remove(deep) == 1
