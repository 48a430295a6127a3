from __future__ import annotations

import json

from device_sim.report import ExitCode, Report


def test_a_report_without_checks_has_not_passed() -> None:
    assert not Report(1, 1).passed
    assert Report(1, 1).exit_code is ExitCode.ERROR


def test_a_failed_security_check_outranks_any_other() -> None:
    report = Report(1, 1)
    report.check("fine", True, "")
    assert report.exit_code is ExitCode.OK
    report.check("slow", False, "")
    assert report.exit_code is ExitCode.ERROR
    report.check("open door", False, "", security=True)
    assert report.exit_code is ExitCode.SECURITY
    assert not report.passed


def test_the_report_is_one_json_document() -> None:
    report = Report(42, 200)
    report.check("fine", True, "all of it", security=True)
    report.fact("latency_ms", {"p50": 0.5})
    document = json.loads(json.dumps(report.as_dict()))
    assert document == {
        "schema": 1,
        "passed": True,
        "exit_code": 0,
        "seed": 42,
        "devices": 200,
        "checks": [{"name": "fine", "passed": True, "security": True, "detail": "all of it"}],
        "latency_ms": {"p50": 0.5},
    }
