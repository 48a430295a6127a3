"""Which name somebody may have meant: slips are found, other devices' numbers come behind them."""

from __future__ import annotations

import pytest

from provisioning.program.near_names import LONGEST, MOST, NearNames, did_you_mean, nearest

FLEET = [f"meter-{number}" for number in range(100)] + ["broker-1", "Pump Room 3", "x"]


def near(wanted: str, names: list[str]) -> list[str]:
    found = NearNames(wanted)
    for each in names:
        found.see(each)
    return found.found


@pytest.mark.parametrize(
    ("wanted", "meant"),
    [
        ("Meter-17", ["meter-17"]),
        ("meter-0017", ["meter-17"]),
        ("mter-17", ["meter-17"]),
        ("metter-17", ["meter-17"]),
        ("metre-17", ["meter-17"]),
        ("meter_17", ["meter-17"]),
        ("meter-17-", ["meter-17"]),
        ("pump room 3", ["Pump Room 3"]),
        ("pumproom3", ["Pump Room 3"]),
        ("broker-2", ["broker-1"]),
        ("y", ["x"]),
        ("nobody", []),
        ("broker-one", []),
        ("x" * (LONGEST + 1), []),
    ],
)
def test_a_slip_is_found(wanted: str, meant: list[str]) -> None:
    assert near(wanted, FLEET) == meant


@pytest.mark.parametrize(
    ("part", "meant"),
    [
        ("00317", ["plant-3-meter-00317", "plant-3-meter-03170"]),
        ("0317", ["plant-3-meter-00317", "plant-3-meter-03170"]),
        ("PLANT-3", ["plant-3-meter-00317", "plant-3-meter-00318", "plant-3-meter-03170"]),
        ("plant-4-", ["plant-4-meter-1"]),
        ("17", []),
        ("meter-9", []),
        ("plant-4-meter-2", ["plant-4-meter-1"]),
    ],
)
def test_without_a_slip_a_part_is_found(part: str, meant: list[str]) -> None:
    names = ["plant-3-meter-00317", "plant-3-meter-03170", "plant-3-meter-00318", "plant-4-meter-1"]
    assert near(part, [*names, *reversed(names)]) == meant


def test_two_digits_exchanged_are_a_slip_and_another_digit_is_another_device() -> None:
    assert near("meter-71", ["meter-70", "meter-17", "meter-72"]) == ["meter-17"]
    assert near("meter-171", FLEET) == ["meter-11", "meter-17", "meter-71"]
    assert near("meter-123", ["meter-456"]) == []


def test_only_the_nearest_are_kept_and_the_name_itself_is_none_of_them() -> None:
    names = [f"meter-1{letter}" for letter in "hbdafceg"]
    assert near("meter-1", [*names, "meter-1", *reversed(names)]) == ["meter-1a", "meter-1b", "meter-1c"][:MOST]


@pytest.mark.parametrize(
    ("names", "asked"),
    [(["a"], "did you mean a?"), (["a", "b"], "did you mean a or b?"), (["a", "b", "c"], "did you mean a, b or c?")],
)
def test_the_question_reads_as_one(names: list[str], asked: str) -> None:
    assert did_you_mean(names) == asked


@pytest.mark.parametrize(
    ("word", "meant"), [("max_inflight", "max_inflight_messages"), ("prot", "port"), ("bridge", None), ("", None)]
)
def test_of_a_programs_own_words_one_that_is_longer_may_be_meant(word: str, meant: str | None) -> None:
    assert nearest(word, ["port", "host", "max_inflight_messages"]) == meant
