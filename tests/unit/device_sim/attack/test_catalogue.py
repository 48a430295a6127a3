"""The catalogue as a whole, and how cases are picked from it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from device_sim.attack.case import Case
from device_sim.attack.catalogue import CATALOGUE, WEBSOCKET, NoSuchCase, pick
from device_sim.attack.delivery_list import OWED
from device_sim.attack.owed import OLDER
from device_sim.attack.revocation_list import chapter
from device_sim.attack.verdict import Layer, is_admission
from tests.conformance.statements import MQTT5, MQTT311

# What an answer may begin with.
LAYERS = {*Layer, "closed"}


def test_every_number_of_the_catalogue_has_a_case() -> None:
    assert {int(case.number) for case in CATALOGUE} == set(range(1, 46))


@pytest.mark.parametrize("cases", [CATALOGUE, chapter.cases, OWED])
def test_names_are_unique_and_every_case_expects_something(cases: Sequence[Case]) -> None:
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    for case in cases:
        assert case.expected
        assert all(answer.split()[0] in LAYERS for answer in case.expected)
        for answer in case.expected:
            is_admission(answer)  # Readable, or it raises.


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["3"], ["3-expired", "3-expired-1s", "3-resumed-expired", "3-expires-live"]),
        (["3-expired"], ["3-expired"]),
        (
            ["4-*,6"],
            [
                "4-not-yet-valid",
                "6-revoked-live",
                "6-revoked-live-311",
                "6-revoked-many",
                "6-revoked-instances",
                "6-revoked-session",
            ],
        ),
        (
            ["*will*", "14"],
            [
                "14-incomplete-chain",
                "37-will",
                "37-will-311",
                "37-will-retained",
                "37-will-of-refused",
                "38-will-of-revoked",
                "41-will-of-frozen",
            ],
        ),
    ],
)
def test_cases_are_picked_by_number_name_or_pattern(patterns: list[str], names: list[str]) -> None:
    assert [case.name for case in pick(CATALOGUE, patterns)] == names


@pytest.mark.parametrize("case", OWED, ids=lambda case: case.name)
def test_what_is_owed_is_promised_by_a_clause_that_there_is(case: Case) -> None:
    """A numbered statement by its number, what has none by its section."""
    newer, _, older = case.clause.partition("3.1.1: ")
    assert bool(newer) is not case.name.endswith(OLDER)
    assert bool(older) or not case.name.endswith(OLDER)
    for clauses, statements in ((newer, MQTT5), (older, MQTT311)):
        for clause in filter(None, clauses.rstrip("; ").split(", ")):
            assert clause.startswith("§") or clause.removeprefix("MQTT-") in statements, clause


def test_each_case_of_mqtt_3_1_1_is_the_twin_of_one_of_mqtt_5() -> None:
    names = {case.name for case in OWED}
    assert {name.removesuffix(OLDER) for name in names if name.endswith(OLDER)} < names


def test_a_name_means_one_case_in_all_three_lists() -> None:
    """A file of capabilities is for all of them."""
    names = [{case.name for case in cases} for cases in (CATALOGUE, WEBSOCKET, chapter.cases, OWED)]
    assert len(set.union(*names)) == sum(map(len, names))


def test_nothing_picked_means_all() -> None:
    assert pick(CATALOGUE, []) == CATALOGUE


def test_a_pattern_that_picks_nothing_is_an_error() -> None:
    with pytest.raises(NoSuchCase, match="--only 99: no such case"):
        pick(CATALOGUE, ["3", "99"])
