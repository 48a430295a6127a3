"""Lists on a narrow terminal: the text keeps its column, and no word is broken."""

from __future__ import annotations

import sys

import pytest

from device_sim.attack import doctor
from device_sim.attack.doctor import Finding, State
from device_sim.hanging import hanging


def test_a_text_keeps_its_column_on_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    head, text = "chaos  100 devices  ", "Everything that can go wrong, under devices"
    assert hanging(head, text) == head + text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "44")
    assert hanging(head, text).splitlines() == [
        "chaos  100 devices  Everything that can go",
        "                    wrong, under devices",
    ]


def test_elsewhere_the_doctor_needs_a_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    finding = Finding("descriptors", State.PROBLEM, "1024 descriptors a process, 10256 needed for 10000 devices",
                      "raise the limit: ulimit -n 20000")  # fmt: skip
    doctor._show([finding])
    line, remedy = capsys.readouterr().out.splitlines()
    assert line == "problem descriptors      1024 descriptors a process, 10256 needed for 10000 devices"
    assert remedy == "                         -> raise the limit: ulimit -n 20000"


def test_a_remedy_can_be_copied_from_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "44")
    remedy = "raise the limit: ulimit -n 20000 && fleet-sim doctor --devices 10000"
    doctor._show([Finding("descriptors", State.PROBLEM, "1024 descriptors a process, 10256 needed", remedy)])
    *told, last = capsys.readouterr().out.splitlines()
    assert len(told) > 1, "the finding keeps its column"
    assert last.endswith(f"-> {remedy}")
