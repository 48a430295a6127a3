"""Who makes a fleet while another does, or was killed while making it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from device_sim.credentials.credential_file import UnusableCredential
from device_sim.credentials.fleet_directory import FleetDirectory, FleetUnusable, Origin
from device_sim.credentials.importing import Examination, take
from tests.support.authority import Authority
from tests.support.importing_user import ImportingUser
from tests.support.programs import REPOSITORY

_NAMES = ["meter-0", "meter-1"]
_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.device_sim.credentials.test_fleet_made_at_once import AUTHORITY, filled

AUTHORITY.issue("first")  # What is imported late must not be counted.
for number in range(1000):
    path = Path(sys.argv[1]) / str(number)
    path.mkdir()
    child = os.fork()
    if not child:
        left = number

        def counted(event, arguments):
            global left
            if event in {"open", "os.mkdir", "os.rename", "os.remove"} and str(path) in str(arguments[0]):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(counted)
        filled(path / "fleet")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""

AUTHORITY = Authority()


def new_fleet(path: Path) -> FleetDirectory:
    return FleetDirectory.create(path, Origin(), AUTHORITY.pem, "backend")


def filled(path: Path) -> FleetDirectory:
    """Do what the commands do: make a fleet, or continue it."""
    fleet = FleetDirectory.read(path) if FleetDirectory.exists(path) else new_fleet(path)
    with fleet.changing():
        for name in _NAMES:
            if name not in fleet.entries:
                fleet.keep(AUTHORITY.issue(name))
    return fleet


def test_whoever_was_killed_at_any_moment_stops_nobody(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], env=environment, check=True)
    left = sorted(tmp_path.iterdir(), key=lambda each: int(each.name))
    assert len(left) > 15
    for each in left:
        filled(each / "fleet")
        fleet = FleetDirectory.read(each / "fleet")
        assert fleet.devices == _NAMES, each
        for name in _NAMES:
            fleet.credential(name).context(fleet.anchors)


def test_a_fleet_that_another_process_makes_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "fleet"
    (path / "devices").mkdir(parents=True)
    with (path / "index.jsonl").open("ab") as index:
        fcntl.flock(index, fcntl.LOCK_EX)
        with pytest.raises(FleetUnusable, match="in use by another process"):
            new_fleet(path)
    new_fleet(path)
    with pytest.raises(FleetUnusable, match=r"has just made a fleet in .*: run the same command again"):
        new_fleet(path)


def test_a_user_s_own_files_are_no_remains_of_a_fleet(tmp_path: Path) -> None:
    (tmp_path / "devices").mkdir()
    (tmp_path / "ca-bundle.crt").write_text("mine")
    with pytest.raises(FleetUnusable, match="is no fleet: name an empty directory"):
        new_fleet(tmp_path)
    assert (tmp_path / "ca-bundle.crt").read_text() == "mine"


def test_a_fleet_that_was_removed_meanwhile_is_not_changed(tmp_path: Path) -> None:
    fleet = filled(tmp_path / "fleet")
    FleetDirectory.read(tmp_path / "fleet").remove()
    with pytest.raises(FleetUnusable, match="has been removed by another process"), fleet.changing():
        pytest.fail("it is gone")
    assert not (tmp_path / "fleet").exists()


async def test_two_imports_at_once_give_no_client_identifier_twice(tmp_path: Path) -> None:
    user = ImportingUser(tmp_path)
    found = []
    for name in _NAMES:
        certificate, key = user.ca.issue(name).write(user.certs, name)
        listed = user.listed({"certificate": certificate, "key": key, "client_id": "same"})
        examination = Examination(user.ca.pem, None, None)
        examination.add_backend(tmp_path / "backend.crt", tmp_path / "backend.key", None)
        await examination.read(listed)
        found.append(examination.parties)
    fleet = FleetDirectory.create(user.fleet, Origin(imported=True), user.ca.pem, "backend-1")
    other = FleetDirectory.read(user.fleet)  # Both have looked before either has copied.
    await take(fleet, found[0], user.ca.pem, lambda _: None)
    with pytest.raises(UnusableCredential, match="have the same client identifier, same: give one of them its own"):
        await take(other, found[1], user.ca.pem, lambda _: None)
    assert user.read().devices == ["meter-0"]
