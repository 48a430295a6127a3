"""The tests are collected once, by a process from which workers are forked; what goes wrong in that, each tells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import REPOSITORY

CONFTEST = """
import pytest
from tests.support import one_collection

def pytest_xdist_setupnodes(config, specs):
    one_collection.prepare(config, specs, {"for_all": "of the run"})
"""
SUITE = """
import os
from pathlib import Path

def note(*words):
    with open(Path(__file__).with_name("notes"), "a") as file:
        print(*words, file=file)

note("collected", os.getpid())

def test_good(tmp_path, pytestconfig):
    worker = pytestconfig.workerinput
    assert worker["workerid"] == os.environ["PYTEST_XDIST_WORKER"] in str(tmp_path)
    note("run", os.getppid(), worker["workerid"], worker["workercount"], worker["for_all"])

def test_bad():
    os.write(1, b"written by " + os.environ["PYTEST_XDIST_WORKER"].encode())
    raise ValueError
"""


def test_two_workers_run_what_was_collected_once(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_suite.py").write_text(SUITE)
    (tmp_path / "test_broken.py").write_text("raise KeyError('who imports it')")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # Looking for plugins takes longer than all else.
    environment |= {"PYTHONPATH": str(REPOSITORY), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    options = ["-pxdist.plugin", "-n2", "--dist=each", "-pno:cacheprovider", f"--basetemp={tmp_path / 'temporary'}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stderr
    (_, collector), *run = [line.split(maxsplit=2) for line in (tmp_path / "notes").read_text().splitlines()]
    assert sorted(run) == [["run", collector, f"gw{number} 2 of the run"] for number in (0, 1)]
    assert done.stdout.count("written by gw0") == done.stdout.count("written by gw1") == 1
    assert "KeyError: 'who imports it'" in done.stdout
    assert "2 failed, 2 passed" in done.stdout


def test_the_workers_of_this_run_are_forked() -> None:
    """Else each collects all tests, and nothing else says so."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert b"tests.support.forked_worker" in Path("/proc/self/cmdline").read_bytes()
