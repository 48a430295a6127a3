"""Names found by filter."""

from __future__ import annotations

from broker.routing.names import TopicNames


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
    assert sorted(names.find("#")) == ["/a", "a", "a/", "a/b", "a/b/c"]
    assert sorted(names.find("a/#")) == ["a", "a/", "a/b", "a/b/c"]
    assert sorted(names.find("+/+")) == ["/a", "a/", "a/b"]
    assert names.find("$SYS/#") == ["$SYS/a"]
    assert names.find("b") == []


def test_a_name_of_many_levels_costs_no_stack() -> None:
    names: TopicNames[int] = TopicNames()
    deep = "/" * 60_000
    names.insert(deep, 1)
    assert names.find("#") == [1]
    assert names.find("/#") == [1]
    assert names.remove(deep) == 1


def test_clearing_forgets_all() -> None:
    names: TopicNames[int] = TopicNames()
    names.insert("a", 1)
    names.clear()
    assert names.find("#") == []
    assert len(names) == 0
