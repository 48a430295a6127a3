"""Who has the current document, and who only believes so."""

from __future__ import annotations

import time
import tracemalloc
from datetime import UTC, datetime

import pytest

from provisioning.api.conditional import is_current

_DATED = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)


@pytest.mark.parametrize(
    ("said", "current"),
    [
        (["Sun, 06 Nov 1994 08:49:37 GMT"], True),
        (["Sunday, 06-Nov-94 08:49:37 GMT"], True),  # RFC 9110 section 5.6.7: whoever reads a date reads three forms.
        (["Sun Nov  6 08:49:37 1994"], True),
        (["Sun, 06 Nov 1994 10:49:37 +0200"], True),
        (["Sun, 06 Nov 1994 08:49:37 +0200"], False),  # Two hours before: of an older list.
        (["Sun, 06 Nov 1994 08:49:36 GMT"], False),
        # Said by his own clock: he may have fetched the list before, while this one was being signed.
        (["Sun, 06 Nov 1994 08:49:38 GMT"], False),
        (["Fri, 01 Jan 2100 00:00:00 GMT"], False),  # Of a list from before the clock was set back.
        (["Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:37 GMT"], False),
        (["yesterday"], False),
        (["Sun, 06 Nov 99999999 08:49:37 GMT"], False),
        ([""], False),
        ([], False),
    ],
)
def test_only_the_very_date_of_the_document_says_that_a_client_has_it(
    said: list[str], current: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Pacific/Auckland")  # A date of HTTP is in GMT wherever the service runs.
    time.tzset()
    try:
        assert is_current([], said, '"a"', _DATED) is current
        assert not is_current([], said, '"a"', None)
        assert not is_current(['"b"'], said, '"a"', _DATED), "with If-None-Match a date is no condition"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("tags", "current"),
    [
        (['"a"'], True),
        (['W/"a"'], True),  # RFC 9110 section 13.1.2: weak comparison.
        (['"b", "a"'], True),
        (['"b"', '"a"'], True),
        (["*"], True),
        (['"b"'], False),
        (["a"], False),
        (["*a"], False),
        ([' W/"a" , "b"'], True),
        (['W/ "a"'], False),
        (['"b""a"'], False),
        (['"a"b'], False),
    ],
)
def test_a_tag_among_those_of_all_headers_says_so(tags: list[str], current: bool) -> None:
    assert is_current(tags, [], '"a"', None) is current


def test_tags_are_not_taken_apart_however_many_a_stranger_sends() -> None:
    """32,000 commas took three milliseconds of everybody's time, again and again."""
    said = "," * 32_000
    tracemalloc.start()
    try:
        assert not is_current([said], [], '"a"', None)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(said), "a pointer for each has eight"
    finally:
        tracemalloc.stop()
