"""Where a command keeps what is gone at its end: also after a kill -9, and nobody else's."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from device_sim.stage import workplace as module
from device_sim.stage.workplace import workplace

_KILLED = """
import os, signal
from device_sim.stage.workplace import workplace
with workplace("run", print) as place:
    (place / "ca.key").write_text("secret")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def _temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_what_a_killed_command_has_left_is_gone_at_the_next_start_and_a_running_one_s_is_not(tmp_path: Path) -> None:
    """The CA's key, its passphrase and the devices' keys lay in /tmp for good."""
    subprocess.run([sys.executable, "-c", _KILLED], check=False)
    (left,) = tmp_path.iterdir()
    said: list[str] = []
    with workplace("run", said.append) as running:
        assert said == [f"removed what a command that was killed has left: {left}"]
        with workplace("attack", said.append) as other:
            assert {*tmp_path.iterdir()} == {running, other}
        assert (running.stat().st_mode & 0o777, len(said)) == (0o700, 1)
    assert list(tmp_path.iterdir()) == []


def test_what_only_has_such_a_name_stays(tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "fleet-sim.held-link").symlink_to(elsewhere)
    (tmp_path / "fleet-sim.held-file").touch()
    (tmp_path / "fleet-sim.held-open").mkdir(mode=0o755)
    (tmp_path / "fleetgate-run-older").mkdir(mode=0o700)
    before = {*tmp_path.iterdir()}
    with workplace("run", pytest.fail):
        pass
    assert {*tmp_path.iterdir()} == before


def test_one_that_is_cleared_away_before_it_was_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, calls, other = module._lock, list[int](), list[int]()

    def raced(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 1:  # Another command has found it unlocked.
            (made,) = tmp_path.iterdir()
            made.rmdir()
        if len(calls) == 2:
            other.append(os.open(next(tmp_path.iterdir()), os.O_RDONLY))
            fcntl.flock(other[0], fcntl.LOCK_EX)
        lock(descriptor)

    monkeypatch.setattr(module, "_lock", raced)
    with workplace("run", pytest.fail) as place:
        assert (len(calls), place.is_dir()) == (3, True)
    os.close(other[0])
