"""The tests are collected once, by a process from which workers are forked; what goes wrong in that, each tells."""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
from execnet.gateway_base import get_execmodel

from tests import conftest
from tests.support import one_collection
from tests.support.forked_worker import Forking
from tests.support.programs import REPOSITORY

CONFTEST = """
import pytest
from tests.support import folder_of_tests, one_collection

pytest_collect_directory = folder_of_tests.collected

def pytest_xdist_setupnodes(config, specs):
    one_collection.prepare(config, specs, {"for_all": "of the run"})
"""
FOLDERS_CONFTEST = """
import pytest

@pytest.fixture(scope="package")
def shared(pytestconfig):
    pytestconfig.workerinput["shared"] = "begun"
    yield
    pytestconfig.workerinput["shared"] = "ended"
"""
FOLDERS_SUITE = """
def test_one(shared, pytestconfig):
    assert pytestconfig.workerinput["shared"] == "begun"

def test_another(pytestconfig):
    assert pytestconfig.workerinput["shared"] == "begun"
"""
SUITE = """
import os
import warnings
from pathlib import Path

warnings.warn("of an import")

def note(*words):
    with open(Path(__file__).with_name("notes"), "a") as file:
        print(*words, file=file)

note("collected", os.getpid())

def test_good(tmp_path, pytestconfig):
    worker = pytestconfig.workerinput
    assert worker["workerid"] == os.environ["PYTEST_XDIST_WORKER"] in str(tmp_path)
    assert worker["shared"] == "ended"
    note("run", os.getppid(), worker["workerid"], worker["workercount"], worker["for_all"])

def test_bad():
    os.write(1, b"written by " + os.environ["PYTEST_XDIST_WORKER"].encode())
    raise ValueError
"""


def test_two_workers_run_what_was_collected_once_and_a_folders_fixtures_end_with_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "conftest.py").write_text(FOLDERS_CONFTEST)
    (tmp_path / "folder" / "test_folder.py").write_text(FOLDERS_SUITE)
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
    assert "UserWarning: of an import" in done.stdout
    assert "2 failed, 6 passed, 2 warnings, 2 errors in" in done.stdout


COLLECTS = """#!/bin/sh
exec {python} -ISc 'import json, os, sys
pipes = json.load(sys.stdin)["pipes"]
os.write(pipes[0][1], b"{pid}\\n")
os.read(pipes[1][0], 1)'
"""
"""Like the process that collects: one of its workers has begun, and one waits for a run that does not begin it."""


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], object]]:
    """What is done at the end of a run that collects its tests once."""
    at_end: list[Callable[[], object]] = []
    monkeypatch.setattr(atexit, "register", lambda each, *arguments: at_end.append(lambda: each(*arguments)))
    return at_end


def test_a_run_ends_that_was_interrupted_before_its_workers_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: list[Callable[[], object]]
) -> None:
    collects, worker = tmp_path / "python", subprocess.Popen(["sleep", "60"])
    collects.write_text(COLLECTS.format(python=sys.executable, pid=worker.pid))
    collects.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(collects))
    begun, waiting = one_collection._start({}, 2, get_execmodel("main_thread_only"))
    assert begun.begins()
    (end,) = ended
    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    ending.join(30)
    assert not ending.is_alive(), "it waits for workers that wait for it"
    assert worker.wait(30) != 0
    for each in (begun, waiting):
        each.close_read()
        each.close_write()


def test_a_worker_does_all_that_xdists_own_does_before_its_first_test() -> None:
    done: list[tuple[object, ...]] = []

    class Interactor:
        def __getattr__(self, name: str) -> Callable[..., bool]:
            def noted(*arguments: object, **named: object) -> bool:
                done.append((name, *arguments, *named.values()))
                return True

            return noted

    session = SimpleNamespace(config="config", items=["item"])
    forking = Forking(cast("Any", SimpleNamespace()), [], None)
    forking.pytest_collectreport(cast("Any", "report"))
    assert forking._work(Interactor(), cast("Any", session))
    assert done == [
        ("pytest_sessionstart", session), ("pytest_collection",), ("pytest_collectreport", "report"),
        ("pytest_collection_modifyitems", "config", ["item"]), ("pytest_collection_finish", session),
        ("pytest_runtestloop", session),
    ]  # fmt: skip


def test_why_nothing_was_forked_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    capturing = SimpleNamespace(global_and_fixture_disabled=contextlib.nullcontext)
    Forking(cast("Any", SimpleNamespace()), [], capturing).pytest_internalerror("a hook has failed")
    assert capfd.readouterr().err == "a hook has failed\n"


def test_where_there_is_no_postgresql_only_the_tests_fail_that_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def unused() -> Path:
        raise AssertionError("initdb is not installed")

    monkeypatch.setattr(conftest, "unused", unused)
    config = SimpleNamespace(workerinput={"is_for_all": True}, getoption=lambda _name: False)
    item = SimpleNamespace(nodeid="a[postgresql]")
    conftest.pytest_collection_finish(cast("Any", SimpleNamespace(config=config, items=[item])))


def test_no_test_has_the_log_of_one_whose_end_fails() -> None:
    structlog.configure(processors=[])
    ending = conftest.pytest_runtest_teardown()
    next(ending)
    with pytest.raises(ValueError, match="a fixture"):
        ending.throw(ValueError("a fixture"))
    assert not structlog.is_configured()


def test_the_workers_of_this_run_are_forked() -> None:
    """Else each collects all tests, and nothing else says so. One that replaces one that has crashed does."""
    number = os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")
    if number and int(number) < int(os.environ["PYTEST_XDIST_WORKER_COUNT"]):
        assert b"tests.support.forked_worker" in Path("/proc/self/cmdline").read_bytes()
