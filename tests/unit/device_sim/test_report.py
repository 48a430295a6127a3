from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from device_sim.core_wait import MOST_WAITING, CoreWatch
from device_sim.demo.demo import _all_late
from device_sim.link.closure import Closure, Layer
from device_sim.report import ExitCode, Report
from device_sim.view import View
from provisioning.program.version import version_and_build
from tests.support.broker_process import wait_until


def test_a_report_without_checks_has_not_passed() -> None:
    assert not Report(1, 1).passed
    assert Report(1, 1).exit_code is ExitCode.ERROR


def test_a_failed_security_check_outranks_any_other() -> None:
    report = Report(1, 1)
    report.check("fine", True, "")
    codes = [report.exit_code]
    report.check("slow", False, "")
    codes.append(report.exit_code)
    report.check("open door", False, "", security=True)
    assert [*codes, report.exit_code] == [ExitCode.OK, ExitCode.ERROR, ExitCode.SECURITY]
    assert not report.passed


def test_the_report_is_one_json_document() -> None:
    report = Report(42, 200)
    report.check("fine", True, "all of it", security=True)
    report.fact("latency_ms", {"p50": 0.5})
    document = json.loads(json.dumps(report.as_dict()))
    assert document == {
        "schema": 1,
        "fleet_sim": version_and_build(),
        "passed": True,
        "exit_code": 0,
        "invalid": [],
        "seed": 42,
        "devices": 200,
        "checks": [{"name": "fine", "passed": True, "security": True, "detail": "all of it"}],
        "latency_ms": {"p50": 0.5},
    }


BUSY, FREE = {"the fleet": 0.02, "the broker": 0.4}, {"the fleet": 0.02, "the broker": 0.1}


def test_who_was_only_late_on_a_machine_that_others_hold_is_not_judged() -> None:
    report = Report(1, 1)
    report.check("fine", True, "")
    report.check("answers", False, "3 of 5", late=True)
    report.judge_machine(BUSY)
    assert report.exit_code is ExitCode.INVALID
    (why,) = report.invalid
    assert "the broker has waited for a core in 40% of the time; stop what else is running" in why
    assert report.as_dict()["waited_for_a_core"] == BUSY


@pytest.mark.parametrize(
    ("waited", "late", "security", "outcome"),
    [
        (FREE, True, False, ExitCode.ERROR),
        (BUSY, False, False, ExitCode.ERROR),
        (BUSY, True, True, ExitCode.SECURITY),
    ],
)
def test_what_else_has_failed_is_no_fault_of_the_machine(
    waited: dict[str, float], late: bool, security: bool, outcome: ExitCode
) -> None:
    report = Report(1, 1)
    report.check("late", False, "", late=True)
    report.check("another", False, "", late=late and not security, security=security)
    report.judge_machine(waited)
    assert (report.exit_code, report.invalid) == (outcome, [])


def test_who_passes_on_a_busy_machine_has_passed(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(1, 1)
    report.check("fine", True, "")
    report.judge_machine(BUSY)
    View().summary(report)
    assert report.exit_code is ExitCode.OK
    assert "PASS: 1 of 1" in capsys.readouterr().out


def test_the_summary_says_invalid_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(1, 1)
    report.check("every device answers", False, "3 of 5", late=True)
    report.judge_machine(BUSY)
    View().summary(report)
    out = capsys.readouterr().out
    assert "INVALID: something was late, and the broker has waited" in out
    assert "(late: every device answers)" in out
    assert "FAIL" not in out


def test_the_kernel_says_who_waits_for_a_core() -> None:
    core = min(os.sched_getaffinity(0))
    burn = f"import os; os.sched_setaffinity(0, [{core}]); print(flush=True)\nwhile True: pass"
    with ExitStack() as stack:
        burners = []
        for _ in range(3):
            burners.append(process := subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE))
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout is not None
            stack.enter_context(process.stdout)
            process.stdout.readline()
        watch = CoreWatch("this", {"one": burners[0].pid, "nobody": 2**22 + 1})
        wait_until(lambda: watch.shares()["one"] > MOST_WAITING, "one of three on a core waits")
        assert watch.shares()["nobody"] == 0.0


def test_only_what_was_not_heard_in_time_is_late() -> None:
    silent = Closure(Layer.MQTT, "timeout", "", 0.0), Closure(Layer.MQTT, "0x8d Keep alive timeout", "", 0.0, 0x8D)
    assert _all_late(silent)
    assert not _all_late([*silent, Closure(Layer.TLS, "certificate_revoked", "", 0.0)])
