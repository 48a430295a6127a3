"""A forked process of a program is what one started afresh is: its words, exit codes, settings and descriptors."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.broker_process import BrokerProcess
from tests.support.pki import Pki

ENVIRONMENT = os.environ | {"PYTHONPATH": str(programs.REPOSITORY)}

Fork = Callable[..., programs.Forked]


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("broker", ["run", "--no-such-flag"]),
        ("provisioning", ["serve", "--dir", "/nonexistent"]),
        ("provisioning", ["status", "--dir", "/nonexistent"]),
    ],
)
def test_the_words_and_the_exit_code_are_those_of_a_process_started_afresh(program: str, arguments: list[str]) -> None:
    forked, afresh = (
        programs.run(program, arguments, ENVIRONMENT, timeout=60, afresh=afresh) for afresh in (False, True)
    )
    assert (forked.returncode, forked.stdout, forked.stderr) == (afresh.returncode, afresh.stdout, afresh.stderr)
    assert forked.stdout + forked.stderr


def test_settings_come_from_the_environment_of_the_order() -> None:
    said = programs.run("broker", ["run"], ENVIRONMENT | {"FLEET_BROKER_PORT": "none"}, timeout=60)
    assert (said.returncode, said.stdout) == (2, "")
    assert "FLEET_BROKER_PORT" in said.stderr


def test_it_has_the_descriptors_of_its_own_and_ends_by_a_signal(tmp_path: Path, pki: Pki) -> None:
    forked, afresh = (BrokerProcess.with_files(tmp_path / name, pki) for name in ("forked", "afresh"))
    with forked, afresh.afresh():
        theirs = [sorted(map(os.readlink, Path(f"/proc/{each.pid}/fd").iterdir())) for each in (forked, afresh)]
        assert len(theirs[0]) == len(theirs[1]), theirs
        assert os.getpgid(forked.pid) == os.getpgid(afresh.pid)
        assert forked.running
        assert forked.stop(signal.SIGKILL) == -signal.SIGKILL
        assert not forked.running


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PYTHONSAFEPATH"])
def test_what_the_interpreter_or_a_library_reads_at_its_start_has_one_of_its_own(name: str) -> None:
    with Path(os.devnull).open("ab") as log:
        process = programs.start("broker", ["version"], ENVIRONMENT | {name: ""}, log)
    assert isinstance(process, subprocess.Popen)
    assert process.stdout is not None
    with process.stdout:
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()
