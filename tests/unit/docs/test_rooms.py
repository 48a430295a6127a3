"""No file of code grows past 500 lines: before that it has a second noun, which gets a file of its own.

And each says in its first line what that noun is: docs/architecture.md sends its readers there. What is hot says what
it may cost, what measures that, and which test compares it with its slow twin.
"""

from __future__ import annotations

import re

from tests.support.provisioning import REPOSITORY

MOST = 500
PACKAGES = ("provisioning", "broker", "device_sim")
FOLDERS = ("provisioning", "broker", "device_sim", "tests", "benchmarks", "deploy")


def test_no_file_is_longer() -> None:
    files = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]
    assert len(files) > len(FOLDERS)
    lengths = {path: path.read_bytes().count(b"\n") for path in files}
    assert {str(path): length for path, length in lengths.items() if length > MOST} == {}


def test_each_says_in_its_first_line_what_it_holds() -> None:
    files = [path for folder in PACKAGES for path in (REPOSITORY / folder).rglob("*.py") if path.stat().st_size]
    assert len(files) > 500
    silent = [str(path) for path in files if not re.match(r'r?"""\S+ ', path.read_text(encoding="utf-8"))]
    assert silent == []


def test_whatever_is_hot_says_its_budget_and_what_measures_it() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "broker").rglob("*.py")]
    hot = [found[0] for text in texts if (found := re.search(r"^Hot[.: ].*?\n\n", text, re.DOTALL | re.MULTILINE))]
    assert len(hot) >= 14
    assert [each for text in texts for each in re.findall(r"^ .*\bHot[.:].*", text, re.MULTILINE)] == []
    for each in hot:
        assert "Budget" in each, each
        (tool, *_others) = re.findall(r"benchmarks/\w+\.py", each)
        assert (REPOSITORY / tool).exists(), each
        assert re.search(r"Slow\s+twin", each), each
        (twin, *_others) = re.findall(r"tests/properties/\w+\.py", each)
        assert (REPOSITORY / twin).exists(), each
        for named in re.findall(r"`(broker\.[a-z_.]+)`", each):
            parts = named.split(".")
            assert any((REPOSITORY / "/".join(parts[:depth])).with_suffix(".py").exists() for depth in (3, 4)), each
