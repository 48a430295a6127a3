"""The doctor: each finding with the remedy that helps."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from typer.testing import CliRunner

from device_sim.attack import doctor
from device_sim.attack.doctor import Finding, Machine, State, examine, look
from device_sim.cli import app

HEALTHY = Machine(
    descriptors=20_000,
    descriptors_allowed=20_000,
    ports=(32768, 60999),
    cores=2,
    memory_kilobytes=4_000_000,
    backlog=4096,
    now=datetime(2027, 1, 1, tzinfo=UTC),
    programs={"mosquitto": "/usr/sbin/mosquitto"},
)


def test_a_healthy_machine_is_well() -> None:
    assert {finding.state for finding in examine(HEALTHY, 10_000, 1)} == {State.OK}


@pytest.mark.parametrize(
    ("change", "devices", "what", "state", "remedy"),
    [
        (
            {"descriptors": 1024},
            10_000,
            "descriptors",
            State.ADVICE,
            "ulimit -n 10256, for a broker that is started from this shell: run and bench take them by themselves",
        ),
        (
            {"descriptors": 1024, "descriptors_allowed": 4096},
            10_000,
            "descriptors",
            State.PROBLEM,
            "as root: prlimit --pid $$ --nofile=10256, then start again from that shell",
        ),
        (
            {"descriptors": 100_000},
            60_000,
            "ports",
            State.PROBLEM,
            "spread the devices over 3 source addresses: --sources 3",
        ),
        ({"memory_kilobytes": 60_000}, 10_000, "memory", State.PROBLEM, "fewer devices: 1000 fit here"),
        ({"cores": 1}, 100, "cores", State.ADVICE, "run them on two machines"),
        ({"backlog": 128}, 100, "listen backlog", State.ADVICE, "as root: sysctl -w net.core.somaxconn=4096"),
        (
            {"now": datetime(1970, 1, 1, tzinfo=UTC)},
            100,
            "clock",
            State.PROBLEM,
            "as root: timedatectl set-ntp true",
        ),
        ({"programs": {"mosquitto": None}}, 100, "mosquitto", State.ADVICE, "apt-get install mosquitto"),
    ],
)
def test_a_lack_has_its_remedy(change: dict[str, Any], devices: int, what: str, state: State, remedy: str) -> None:
    findings = examine(replace(HEALTHY, **change), devices, 1)
    assert [(each.what, each.state, each.remedy) for each in findings if each.state is not State.OK] == [
        (what, state, remedy)
    ]


def test_this_machine_can_be_looked_at() -> None:
    assert look().cores >= 1


def test_its_findings_are_told_to_programs_too() -> None:
    done = CliRunner().invoke(app, ["doctor", "--devices", "10000000", "--json"])
    found = json.loads(done.stdout)
    assert {each["what"]: each["state"] for each in found}["descriptors"] == State.PROBLEM
    assert all(each["remedy"] for each in found if each["state"] == State.PROBLEM)
    assert (done.exit_code, done.stderr) == (1, "")


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
    monkeypatch.setenv("COLUMNS", "60")
    remedy = "raise the limit: ulimit -n 20000 && fleet-sim doctor --devices 10000"
    doctor._show([Finding("descriptors", State.PROBLEM, "1024 descriptors a process, 10256 needed", remedy)])
    *told, last = capsys.readouterr().out.splitlines()
    assert len(told) > 1, "the finding keeps its column"
    assert last.endswith(f"-> {remedy}")
