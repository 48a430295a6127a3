"""No two devices come to one host name, whatever they are called and whatever the patterns are."""

from __future__ import annotations

from functools import cache
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from provisioning.ca.host_patterns import AmbiguousHostName, check_unambiguous, filled, may_clash
from provisioning.pki.identity import Identity
from provisioning.pki.role import Role

WORDS = ["a", "b", "c", "a.b", "b.c", "a-b", "b-c", "a.b.c", "a-b-c", "a.b-c", "a-b.c", "x-a", "a.x"]
LITERALS = ["", ".", "-", ".x", "x-", "-x.", ".b."]
PLACES = [["{name}"], ["{name}", "{group}"], ["{group}", "{name}"], ["{name}", "{name}"]]
PATTERNS = [
    begin + "".join(place + literal for place, literal in zip(places, between, strict=True))
    for places in PLACES
    for begin in LITERALS
    for between in product(LITERALS, repeat=len(places))
]


def host_name(pattern: str, name: str, group: str) -> str | None:
    try:
        check_unambiguous(pattern)
        return filled(pattern, Identity("fleet.internal", Role.DEVICE, name, group))
    except AmbiguousHostName:
        return None


@cache
def names_of_hosts(pattern: str) -> dict[str, set[str]]:
    """Return who has each host name, if everybody with a name and group of `WORDS` asks for one."""
    found: dict[str, set[str]] = {}
    for name, group in product(WORDS, repeat=2):
        host = host_name(pattern, name, group)
        if host is not None:
            found.setdefault(host, set()).add(name)
    return found


def test_a_host_name_of_one_pattern_leads_back_to_one_name() -> None:
    shared = [(pattern, *each) for pattern in PATTERNS for each in names_of_hosts(pattern).items() if len(each[1]) > 1]
    assert shared == []
    assert sum(bool(names_of_hosts(pattern)) for pattern in PATTERNS) > len(PATTERNS) / 2, "most patterns are allowed"


@given(st.sampled_from(PATTERNS), st.sampled_from(PATTERNS))
def test_patterns_that_do_not_clash_never_make_one_host_name(pattern: str, beside: str) -> None:
    assert may_clash(pattern, beside) == may_clash(beside, pattern)
    if pattern != beside and not may_clash(pattern, beside):
        assert names_of_hosts(pattern).keys() & names_of_hosts(beside).keys() == set()


def test_the_property_s_examples_meet() -> None:
    """What the rules refuse is a clash."""
    assert host_name("{name}.{group}.x", "a", "b.c") == "a.b.c.x"
    assert host_name("{name}.{group}.x", "a.b", "c") is None
    assert host_name("{group}.{name}.x", "a.b", "g") == "g.a.b.x", "what comes last may hold anything"
    assert host_name("{name}-{group}.x", "a", "b") is None
    assert may_clash("{name}.x", "{name}.{group}.x")
    assert not may_clash("{name}.x", "{name}.y")
