"""The reference matcher against an independent oracle, and filter containment against what the filters match."""

from __future__ import annotations

import functools
import re
from contextlib import suppress
from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from broker.mqtt.errors import MalformedPacket
from broker.mqtt.filter_set import FilterSet
from broker.mqtt.topics import check_topic_filter, check_topic_name, covers, matches, overlaps
from tests.support.packet_strategies import strings, topic_filters, topic_names


def expression(topic_filter: str) -> re.Pattern[str]:
    """The filter as a regular expression, written from §4.7 and not from our matcher."""
    text = re.escape(topic_filter).replace(r"\+", "[^/]*")
    text = re.sub(r"/\\#$", "(/.*)?", text)  # 'a/#' matches 'a'.
    text = re.sub(r"^\\#$", ".*", text)
    not_reserved = r"(?!\$)" if topic_filter[0] in "+#" else ""
    return re.compile(not_reserved + text, re.DOTALL)


@given(topic_filters, topic_names)
def test_a_filter_matches_what_its_regular_expression_matches(topic_filter: str, topic_name: str) -> None:
    assert matches(topic_filter, topic_name) is bool(expression(topic_filter).fullmatch(topic_name))


@given(topic_names)
def test_a_name_is_a_filter_that_matches_itself(topic_name: str) -> None:
    assert check_topic_filter(check_topic_name(topic_name)) == topic_name
    assert matches(topic_name, topic_name)
    assert covers(topic_name, topic_name)


@given(topic_filters, topic_names)
def test_covering_a_name_is_matching_it(topic_filter: str, topic_name: str) -> None:
    assert covers(topic_filter, topic_name) is matches(topic_filter, topic_name)


@st.composite
def wider(draw: st.DrawFn, topic_filter: str) -> str:
    """*topic_filter* with some levels replaced by wildcards: it often covers the original, not always."""
    levels = [
        draw(st.sampled_from([level, level, "+"])) if level != "#" else level for level in topic_filter.split("/")
    ]
    cut = draw(st.integers(0, 2 * len(levels)))
    return "/".join(levels if cut > len(levels) else [*levels[:cut], "#"])


@given(st.data(), topic_names)
def test_what_the_covered_filter_matches_the_covering_one_matches(data: st.DataObject, topic_name: str) -> None:
    inner = data.draw(wider(topic_name))
    outer = data.draw(wider(inner))

    if covers(outer, inner) and matches(inner, topic_name):
        assert matches(outer, topic_name)


@given(st.data(), topic_filters)
def test_covering_is_transitive(data: st.DataObject, third: str) -> None:
    second = data.draw(wider(third))
    first = data.draw(wider(second))

    if covers(first, second) and covers(second, third):
        assert covers(first, third)


NAME_LEVELS, FILTER_LEVELS = ("a", "z", "$", ""), ("a", "$", "", "+")
PREFIXES = [levels for size in range(4) for levels in product(FILTER_LEVELS, repeat=size)]
SMALL_FILTERS = sorted({"/".join((*prefix, *tail)) for prefix in PREFIXES for tail in ((), ("#",))} - {""})
"""Every filter of up to three levels and a '#'."""


@functools.cache  # Two seconds of matching: not for who only collects the tests.
def small() -> dict[str, int]:
    """Return the set of small names that each of `SMALL_FILTERS` matches, as bits."""
    names = {"/".join(levels) for size in range(1, 6) for levels in product(NAME_LEVELS, repeat=size)} - {""}
    return {
        each: sum(1 << index for index, name in enumerate(names) if matches(each, name))
        for each in map(check_topic_filter, SMALL_FILTERS)
    }


def test_covering_is_containment_for_every_pair_of_small_filters() -> None:
    """Complete as well as sound: a level that no filter names, and two levels more than any has, tell them apart."""
    names = small()
    for outer, inner in product(names, repeat=2):
        assert covers(outer, inner) is (names[inner] & ~names[outer] == 0), (outer, inner)


def test_overlapping_is_intersection_for_every_pair_of_small_filters() -> None:
    names = small()
    for one, other in product(names, repeat=2):
        assert overlaps(one, other) is (names[one] & names[other] != 0), (one, other)


@given(st.lists(st.sampled_from(SMALL_FILTERS), max_size=4), st.sampled_from(SMALL_FILTERS))
def test_a_set_of_filters_covers_exactly_what_they_match_together(outers: list[str], inner: str) -> None:
    names, together = small(), 0
    for each in outers:
        together |= names[each]
    assert FilterSet(tuple(outers)).covers(inner) is (names[inner] & ~together == 0)
    assert FilterSet(tuple(outers)).overlaps(inner) is (names[inner] & together != 0)


@given(st.lists(topic_filters, max_size=4), topic_names)
def test_a_set_of_filters_matches_what_one_of_them_does(filters: list[str], topic_name: str) -> None:
    assert FilterSet(tuple(filters)).matches(topic_name) is any(matches(each, topic_name) for each in filters)


@given(strings)
def test_text_is_a_topic_or_refused(text: str) -> None:
    for check in (check_topic_name, check_topic_filter):
        with suppress(MalformedPacket):
            assert check(text) == text
