"""`make test-thorough` takes more examples of each property, compiled code fewer: also of one with its own figure."""

from __future__ import annotations

import subprocess

import pytest

from tests.support import examples as subject
from tests.support.programs import REPOSITORY


def test_a_figure_is_multiplied_like_the_profile_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "TIMES", 20)
    assert subject.examples(40).max_examples == 800
    assert subject.examples(40, of=100).max_examples == 2_000
    monkeypatch.setattr(subject, "TIMES", 1)
    assert subject.examples(40, of=100).max_examples == 40
    monkeypatch.setattr(subject, "TIMES", 0.5)
    assert subject.examples(40, of=100).max_examples == 20


def test_no_property_has_a_figure_that_counts_whatever_the_profile_says() -> None:
    search = [
        "grep",
        "-rE",
        "--include=test_*.py",
        "^(from hypothesis import|import hypothesis)",
        str(REPOSITORY / "tests"),
    ]
    found = subprocess.run(search, check=True, capture_output=True, text=True).stdout.splitlines()
    assert sum("given" in line for line in found) > 30
    assert [line for line in found if "settings" in line or "import hypothesis" in line] == []
