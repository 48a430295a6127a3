"""The files of cached names, when they are forgotten: in steps, since whoever publishes chooses how many there are."""

from __future__ import annotations

from broker.routing.cached import CachedNames

LEVELS = 60


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
    assert names.forgotten >= held, "nothing was freed at once"
    added = 0
    while before := names.forgotten:
        names.insert(deep(1000 + added))
        added += 1
        assert 0 < before - names.forgotten <= 2 * LEVELS
    assert added < 120, "they are gone before as many names are cached again"
    assert names.words == added * LEVELS
    assert len(names.find("#")) == added
    names.clear()
    names.clear()
    assert names.forgotten == added * LEVELS + 1
