"""A forked process of a program is what one started afresh is: its words, exit codes, settings and descriptors."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import programs
from tests.support.broker_process import BrokerProcess
from tests.support.pki import Pki
from tests.support.plugins import plugged

ENVIRONMENT = os.environ | {"PYTHONPATH": str(programs.REPOSITORY)}


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
    stand_in = called("-m", program, *arguments)
    assert (stand_in.returncode, stand_in.stdout, stand_in.stderr) == (afresh.returncode, afresh.stdout, afresh.stderr)


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
        for each in (forked, afresh):
            _python, *words = Path(f"/proc/{each.pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            run, option, _any, *rest = each.arguments
            given = [run, option, str(each.port), *rest]
            assert words == [b"-m", b"broker", *map(os.fsencode, given)]
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


TOLD = """
import sys
from amqtt.plugins.base import BasePlugin

class Told(BasePlugin):
    print(*sys.path, sep="\\n")
"""


def test_folders_behind_ours_in_the_environment_are_where_a_process_started_afresh_has_them(
    tmp_path: Path, pki: Pki
) -> None:
    broker = plugged(tmp_path, pki, '"fleet_plugins.Told" = {}', TOLD)
    arguments = [*broker.arguments, "--test-config"]
    forked, afresh = (
        programs.run("broker", arguments, broker.environment, timeout=60, afresh=afresh) for afresh in (False, True)
    )
    assert str(tmp_path) in forked.stdout.splitlines(), forked.stderr
    assert forked.stdout == afresh.stdout
    assert programs._forkable("broker", broker.environment)
    before_ours = os.pathsep.join((str(tmp_path), str(programs.REPOSITORY)))
    assert not programs._forkable("broker", broker.environment | {"PYTHONPATH": before_ours})


def test_a_stand_in_sends_signals_on_and_nothing_outlives_it(tmp_path: Path, pki: Pki) -> None:
    broker = BrokerProcess.with_files(tmp_path, pki)
    command = [programs.forking_python("broker", "provisioning"), "-m", "broker", *broker.arguments]
    server = programs._server("broker").pid
    for number, code in ((signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)):
        others = children_of(server)
        with (
            (tmp_path / "log").open("ab") as log,
            subprocess.Popen(command, env=broker.environment, stdout=subprocess.PIPE, stderr=log) as process,
        ):
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"fleet-broker ready ")
            (forked,) = children_of(server) - others
            pidfd = os.pidfd_open(forked)
            try:
                process.send_signal(number)
                assert process.wait(60) == code
                assert select.select([pidfd], [], [], 60)[0], "it runs on"
            finally:
                os.close(pidfd)


def test_whom_a_stand_in_cannot_have_forked_has_an_interpreter_of_its_own() -> None:
    said = called("-m", "broker", "version", PYTHONPROFILEIMPORTTIME="1")
    assert "| broker.cli" in said.stderr
    assert "import time" not in called("-m", "broker", "version").stderr
    told = "import os; print(os.getppid())"
    python, text = programs.forking_python("tests"), ["-m", "tests.support.any_text", told]
    for name, parent in (("tests.support.any_text", os.getpid()), ("broker", programs._server("tests").pid)):
        environment = ENVIRONMENT | {programs.AFRESH: name}
        asked = subprocess.run([python, *text], env=environment, stdout=subprocess.PIPE, text=True, check=True)
        assert int(asked.stdout) == parent
    assert called("-c", "import sys; print(sys.argv)", "x").stdout == "['-c', 'x']\n"


def test_what_inherits_the_environment_of_the_tests_is_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is more than `os.environ` says: readline, which pytest imports, may have added the size of the screen."""
    monkeypatch.setenv("PYTHONPATH", str(programs.REPOSITORY))
    command = [programs.forking_python("tests"), "-m", "tests.support.any_text", "import os; print(os.getppid())"]
    parent = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout
    assert int(parent) == programs._server("tests").pid


WORKER = """
import json, sys
from tests.support import programs

if shared := json.loads(sys.argv[1]):
    programs.join(*shared)
print(programs._server("tests").pid, programs._folder(), flush=True)
sys.stdin.read()
"""


def test_workers_share_what_is_imported_and_a_killed_one_takes_only_its_own_with_it() -> None:
    ours = programs._server("tests").pid
    with worker(programs.shared()) as (process, server), ended(server) as theirs:
        assert server != ours
        assert parent_of(server) == parent_of(ours)
        process.kill()
        assert theirs.poll(60_000), "its fork server runs on"
    assert children_of(parent_of(ours)) >= {ours}


def test_when_the_run_is_killed_nothing_that_imports_for_it_is_left() -> None:
    with worker(None) as (process, server):
        importer = parent_of(server)
        with ended(server) as first, ended(importer) as second, ended(parent_of(importer)) as third:
            process.kill()
            assert all(each.poll(60_000) for each in (first, second, third))


@pytest.mark.parametrize(
    "text",
    [
        "import sys; print('x'); sys.exit(True)",
        "import sys; sys.exit(-9)",
        "import sys; sys.exit(300)",
        "import sys; sys.exit(2**40 + 3)",
        "import sys; sys.exit('words')",
        "import sys; sys.exit([])",
        "import sys; sys.exit(ValueError('words'))",
        "import sys; print('x'); sys.stdout.close()",
        "import sys; sys.stderr = None; print('x'); sys.exit(3)",
        "import sys; sys.stdout = open('/dev/full', 'w'); print('x'); sys.exit(3)",
        "import atexit; atexit.register(print, 'bye')",
        "import threading, time; threading.Thread(target=time.sleep, args=(99,), daemon=True).start(); print('x')",
        "import threading; threading.Thread(target=lambda: print('x')).start()",
    ],
)
def test_a_forked_process_ends_as_one_started_afresh_whatever_way_it_goes(text: str) -> None:
    forked, afresh = (
        subprocess.run(
            [python, "-m", "tests.support.any_text", text],
            env=ENVIRONMENT, capture_output=True, text=True, timeout=60, check=False,
        )
        for python in (programs.forking_python("tests"), sys.executable)
    )  # fmt: skip
    assert (forked.returncode, forked.stdout, forked.stderr) == (afresh.returncode, afresh.stdout, afresh.stderr)


def called(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [programs.forking_python("broker", "provisioning"), *arguments]
    return subprocess.run(
        command, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=60, check=False
    )


@contextlib.contextmanager
def worker(shared: programs.Shared | None) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """Run another process that has a fork server, as the workers of one test run are; yield also that one's number."""
    command = [sys.executable, "-c", WORKER, json.dumps(shared)]
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            number, folder = process.stdout.readline().split()
            yield process, int(number)
        finally:
            process.kill()
        shutil.rmtree(folder)


def test_of_a_process_that_was_not_forked_nothing_stays_open() -> None:
    report, theirs = os.pipe()
    os.close(theirs)
    with pytest.raises(AssertionError, match="the fork server has ended"):
        programs.Forked(report)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(report)


@contextlib.contextmanager
def ended(number: int) -> Iterator[select.poll]:
    """Yield what says that process *number* has ended."""
    pidfd = os.pidfd_open(number)
    try:
        waiting = select.poll()
        waiting.register(pidfd, select.POLLIN)
        yield waiting
    finally:
        os.close(pidfd)


def parent_of(number: int) -> int:
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])


def children_of(parent: int) -> set[int]:
    return {int(each) for each in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()}


@pytest.fixture(scope="module")
def pki() -> Pki:
    return Pki()
