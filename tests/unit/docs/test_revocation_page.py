"""docs/revocation.md and the tests say the same: every case of the list is played, and every case played is listed."""

from __future__ import annotations

import re

from device_sim.attack.revocation_list import chapter
from tests.support.provisioning import REPOSITORY

PAGE = (REPOSITORY / "docs" / "revocation.md").read_text(encoding="utf-8")
FOLDER = REPOSITORY / "tests" / "revocation"


def listed() -> dict[int, str]:
    return {int(number): source for number, source in re.findall(r"^\| REV-(\d+) \|.*\| (\w+) \|$", PAGE, re.MULTILINE)}


def played() -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for path in FOLDER.glob("test_*.py"):
        for numbers in re.findall(r"^def test_rev_((?:\d+_)+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            for number in numbers.split("_")[:-1]:
                found.setdefault(int(number), set()).add(path.stem)
    return found


def test_every_case_is_played_where_the_page_says() -> None:
    files = {"feed": {"test_feed", "test_stolen_keys"}, "list": {"test_lists"}, "OCSP": {"test_ocsp"}}
    cases = played()
    assert cases.keys() == listed().keys()
    for number, source in listed().items():
        assert files[source] & cases[number], f"REV-{number}"


def test_the_numbers_have_no_gap() -> None:
    assert list(listed()) == list(range(1, len(listed()) + 1))


def test_the_simulators_cases_have_the_same_numbers() -> None:
    numbers = [int(case.name.partition("-")[0]) for case in chapter.cases]
    assert numbers == list(range(1, 18))
