"""What a worker tells of a test: its outcome once, and whatever else went wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.one_report import OneReport

SUITE = """
import pytest

@pytest.fixture
def begins_badly():
    raise ValueError

@pytest.fixture
def ends_badly():
    yield
    raise ValueError

@pytest.fixture
def is_skipped():
    pytest.skip("not here")

def test_good(): pass
def test_bad(): raise ValueError
def test_begins_badly(begins_badly): pass
def test_ends_badly(ends_badly): pass
def test_bad_and_ends_badly(ends_badly): raise ValueError
def test_is_skipped(is_skipped): pass
def test_skips(): pytest.skip("not now")
@pytest.mark.xfail
def test_expected(): raise ValueError
"""


class Told:
    """What a worker would send."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, str | None, str]] = []
        self.exit_code = -1

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.reports.append((report.nodeid.partition("::")[2].removeprefix("test_"), report.when, report.outcome))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        self.exit_code = exitstatus


def test_a_test_that_passes_is_told_once_and_nothing_that_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # Looking for them takes longer than all else.
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    told = Told()
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    # Its fault handler would end with it, and be this process's; it would leave its folder in the path of modules.
    without = ["-pno:cacheprovider", "-pno:terminal", "-pno:faulthandler", "--import-mode=importlib"]
    pytest.main([*without, f"--rootdir={tmp_path}", str(tmp_path)], [OneReport(), told])
    assert told.exit_code == pytest.ExitCode.TESTS_FAILED
    assert told.reports == [
        ("good", "call", "passed"),
        ("bad", "setup", "passed"),
        ("bad", "call", "failed"),
        ("bad", "teardown", "passed"),
        ("begins_badly", "setup", "failed"),
        ("begins_badly", "teardown", "passed"),
        ("ends_badly", "setup", "passed"),
        ("ends_badly", "call", "passed"),
        ("ends_badly", "teardown", "failed"),
        ("bad_and_ends_badly", "setup", "passed"),
        ("bad_and_ends_badly", "call", "failed"),
        ("bad_and_ends_badly", "teardown", "failed"),
        ("is_skipped", "setup", "skipped"),
        ("skips", "call", "skipped"),
        ("expected", "call", "skipped"),
    ]
