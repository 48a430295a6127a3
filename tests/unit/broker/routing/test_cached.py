"""The files of cached names, when they are forgotten: in steps, since whoever publishes chooses how many there are."""

from __future__ import annotations

from itertools import pairwise

from broker.routing.cached import CachedNames

LEVELS = 60


def forgotten(names: CachedNames) -> int:
    """Return how many dropped files are still in memory."""
    return sum(map(len, names._gone))


def deep(number: int) -> bytes:
    return "/".join(f"{number}-{level}" for level in range(LEVELS)).encode()


def test_what_is_forgotten_is_let_go_by_and_by_and_is_not_found() -> None:
    names = CachedNames()
    for number in range(100):
        names.insert(deep(number))
    held = names.words
    assert held == 100 * LEVELS
    names.clear()
    assert (names.words, len(names), names.find("#")) == (0, 0, [])
    assert forgotten(names) >= held, "nothing was freed at once"
    added = 0
    while before := forgotten(names):
        names.insert(deep(1000 + added))
        added += 1
        assert 0 < before - forgotten(names) <= 2 * LEVELS
    assert added < 120, "they are gone before as many names are cached again"
    assert names.words == added * LEVELS
    assert len(names.find("#")) == added
    names.clear()
    names.clear()
    assert forgotten(names) == added * LEVELS + 1


def test_large_files_that_were_forgotten_are_let_go_by_and_by_too() -> None:
    """Sixty files of sixty thousand names, freed with one new name, hold the loop for a tenth of a second."""
    names = CachedNames()
    for number in range(1_000):
        names.insert(b"fleet/meters/a/a/a/%d" % number)
    names.clear()
    entries = [sum(len(file) for files in names._gone for file in files.values())]
    for number in range(3_000):
        names.insert(b"new/%d" % number)
        entries.append(sum(len(file) for files in names._gone for file in files.values()))
    assert entries[0] == 7_000
    assert max(before - after for before, after in pairwise(entries)) <= 4
    assert entries[-1] == 0
