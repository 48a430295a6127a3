"""The reports: JUnit for a CI, JSON, one table of several runs, and the exit verdict of a run."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from device_sim.attack.report import as_dict, junit_of, line, markdown, show, show_stopped
from device_sim.attack.run import worst
from device_sim.attack.verdict import Judgement, Layer, Outcome, Seen, Verdict

RIGHT = Outcome("2-a", "a", ("tls x",), 3.0, Judgement(Verdict.PASS), Seen(Layer.TLS, "x", "said\x00so"), 0.02)
ODD = Outcome("3-b", "b", ("tls x",), 3.0, Judgement(Verdict.WARN, "otherwise"), Seen(Layer.TCP, "reset"), 0.02)
WRONG = Outcome("4-c", "c", ("tls x",), 3.0, Judgement(Verdict.FAIL, "it | got in"), Seen(Layer.MQTT, "y", got_in=True))
LEFT = Outcome("5-d", "d", ("tls x",), 3.0, Judgement(Verdict.SKIP, "cannot"))
BUSY = Outcome("6-e", "e", ("tls x",), 3.0, Judgement(Verdict.INVALID, "no core"), Seen(Layer.MQTT, "starved"))
ALL = [RIGHT, ODD, WRONG, LEFT]


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ([RIGHT], Verdict.PASS),
        ([RIGHT, LEFT], Verdict.PASS),
        ([RIGHT, ODD], Verdict.WARN),
        ([ODD, LEFT], Verdict.WARN),
        (ALL, Verdict.FAIL),
        ([RIGHT, ODD, BUSY], Verdict.INVALID),
        ([WRONG, BUSY], Verdict.FAIL),
        ([LEFT], Verdict.FAIL),
        ([], Verdict.FAIL),
    ],
)
def test_the_worst_counts_and_nothing_judged_is_a_failure(outcomes: list[Outcome], verdict: Verdict) -> None:
    assert worst(outcomes) is verdict


def test_junit_counts_failures_and_skips_and_is_xml_whatever_the_peer_said(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text(junit_of("attack", "broker", [*ALL, BUSY], 7.25))
    suite = ET.parse(path).getroot()  # noqa: S314 - we wrote it
    assert [suite.get(what) for what in ("tests", "failures", "errors", "skipped")] == ["5", "1", "1", "1"]
    assert suite.get("time") == "7.250"  # Of the run: a device's lines have no time of their own.
    assert [row.get("name") for row in suite if row.find("error") is not None] == ["6-e"]
    assert [row.get("name") for row in suite if row.find("failure") is not None] == ["4-c"]
    assert [row.get("name") for row in suite if row.find("skipped") is not None] == ["5-d"]
    assert r"said\x00so" in (suite[0].findtext("system-out") or "")


def test_one_table_compares_runs_and_leaves_a_gap_where_one_has_no_such_case() -> None:
    ours = as_dict("attack", "ours", ALL, {})
    theirs = as_dict("attack", "theirs", [RIGHT], {})
    assert ours["verdict"] == "fail"
    assert markdown([ours, theirs]).splitlines() == [
        "| case | the device … | right answer | ours | theirs |",
        "|---|---|---|---|---|",
        "| 2-a | a | tls x | **pass** tls x, 20 ms | **pass** tls x, 20 ms |",
        "| 3-b | b | tls x | **warn** tcp reset, 20 ms; otherwise |  |",
        "| 4-c | c | tls x | **fail** mqtt y, 0 ms; it \\| got in |  |",
        "| 5-d | d | tls x | **skip** cannot |  |",
        "| **total** | | | 1 pass, 1 warn, 1 fail, 1 skip | 1 pass, 0 warn, 0 fail, 0 skip |",
    ]


def test_of_promises_the_table_shows_those_that_somebody_does_not_keep_and_counts_the_others() -> None:
    promised = [replace(outcome, clause="MQTT-1.2-3") for outcome in ALL]
    ours = as_dict("delivery", "ours", [replace(RIGHT, name=each.name, clause="MQTT-1.2-3") for each in ALL], {})
    theirs = as_dict("delivery", "theirs", promised, {}) | {"target_version": "1.0"}
    head = ["| case | the device … | promised by | ours | theirs 1.0 |", "|---|---|---|---|---|"]
    total = "| **total** | | | 4 pass, 0 warn, 0 fail, 0 skip | 1 pass, 1 warn, 1 fail, 1 skip |"
    unkept = [
        "| 3-b | a | MQTT-1.2-3 | pass | **warn**: otherwise |",
        "| 4-c | a | MQTT-1.2-3 | pass | **fail**: it \\| got in |",
    ]
    assert markdown([ours, theirs]).splitlines() == [
        *head, *unkept, "| all others | | | 2 pass | 1 pass, 1 skip |", total
    ]  # fmt: skip
    assert markdown([ours, theirs], every=True).splitlines() == [
        *head, "| 2-a | a | MQTT-1.2-3 | pass | pass |", *unkept,
        "| 5-d | a | MQTT-1.2-3 | pass | skip: cannot |", total,
    ]  # fmt: skip


def test_a_line_names_the_clause_of_a_promise_that_is_not_kept() -> None:
    assert line(replace(WRONG, clause="MQTT-1.2-3")).endswith("(it | got in; MQTT-1.2-3)")
    assert "MQTT" not in line(replace(RIGHT, clause="MQTT-1.2-3"))


def test_a_line_says_verdict_answer_and_why() -> None:
    assert line(ODD).split() == [
        "WARN",
        "3-b",
        "tcp",
        "reset",
        "20",
        "ms",
        "(otherwise);",
        "expected:",
        *" or ".join(ODD.expected).split(),
    ]
    assert line(LEFT).split() == ["SKIP", "5-d", "-", "(cannot)"]


def test_a_case_keeps_its_name_on_a_terminal_of_80_columns() -> None:
    """Broken in two it could not be copied to --only."""
    name = "server-wrong-name.sends-nothing"
    out = io.StringIO()
    case = replace(ODD, name=name, description="the server's certificate is for another name: sends nothing")
    show(Console(file=out, width=80, force_terminal=True, no_color=True), "run", [case])
    assert f" {name} " in out.getvalue(), out.getvalue()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 140])
def test_no_word_is_broken_on_a_terminal_however_narrow(width: int) -> None:
    """A table there has columns of three letters; names and verdicts stay whole, as they are what one looks for."""
    out = io.StringIO()
    name = "staple-other-certificate.sends-nothing"[: width - 12]
    why = "it asks for no staple: only a CRL, or asking by itself, tells it that the server is revoked"
    many = [replace(case, name=name, description=why, judgement=Judgement(case.verdict, why)) for case in (*ALL, BUSY)]
    show(Console(file=out, width=width, force_terminal=True, color_system=None), "run", many)
    said = out.getvalue()
    assert all(len(row) <= width for row in said.splitlines())
    assert said.count(name) >= len(many)
    for case in many:
        assert f" {case.verdict.value} " in said
    assert {word for word in why.split() if word not in said.split()} == set(), said


def test_what_was_judged_before_a_stop_is_shown_once() -> None:
    """On a terminal each line was shown at once."""
    piped, terminal = io.StringIO(), io.StringIO()
    show_stopped(Console(file=piped, width=200), "attack x", ALL, "after 4 of 9 cases")
    show_stopped(Console(file=terminal, width=200, force_terminal=True), "attack x", ALL, "after 4 of 9 cases")
    *lines, last = piped.getvalue().splitlines()
    assert [each.split()[1] for each in lines] == [each.name for each in ALL]
    assert last == "attack x, stopped after 4 of 9 cases: 1 pass, 1 warn, 1 fail, 1 skip"
    assert len(terminal.getvalue().splitlines()) == 1


def test_what_failed_is_named_once_more_below_the_table_and_what_the_broker_said_beside_it() -> None:
    """The table is longer than a screen."""
    out = io.StringIO()
    seen = Seen(Layer.MQTT, "CONNACK 0x87", "EXPIRED: yesterday")
    failed = replace(ODD, name="3-expired", judgement=Judgement(Verdict.FAIL, "the attack succeeded"), seen=seen)
    passed = replace(ODD, name="1-good", judgement=Judgement(Verdict.PASS))
    show(Console(file=out, width=120, force_terminal=True, no_color=True), "run", [passed, failed])
    *_, totals, names = out.getvalue().rstrip().splitlines()
    assert totals == "1 pass, 0 warn, 1 fail, 0 skip"
    assert "fail: 3-expired" in names
    assert out.getvalue().count("it said: EXPIRED: yesterday") == 1


def test_a_case_that_was_not_tried_has_its_reason_in_its_first_line() -> None:
    out = io.StringIO()
    show(Console(file=out, width=120, force_terminal=True, no_color=True), "run", [LEFT])
    (row,) = [each for each in out.getvalue().splitlines() if " 5-d " in each]
    assert "cannot" in row
