"""A fleet's directory after a power failure: what was enrolled is there, and what was cut off is enrolled again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from device_sim.credentials.fleet_directory import FleetDirectory, Origin
from provisioning.pki.keys import spki_fingerprint
from tests.support.authority import Authority
from tests.support.power_cuts import Disk, PowerCuts
from tests.support.programs import REPOSITORY
from tests.support.recorded_disk import RecordedDisk

_WRITER = """
import sys
from pathlib import Path
from tests.support.recorded_disk import mark
from tests.unit.device_sim.credentials.test_fleet_after_a_power_failure import AUTHORITY, begun, new_fleet

fleet = new_fleet(Path(sys.argv[1]) / "fleet")
with fleet.changing():
    mark("key " + begun(fleet))
    for number in range(3):
        fleet.keep(AUTHORITY.issue(f"meter-{number}"))
mark("enrolled 3")
with fleet.changing():
    fleet.keep(AUTHORITY.issue("meter-3"))
    fleet.revoked("meter-0")
mark("enrolled 4")
"""

AUTHORITY = Authority()


def new_fleet(path: Path) -> FleetDirectory:
    return FleetDirectory.create(path, Origin(), AUTHORITY.pem, "backend")


def begun(fleet: FleetDirectory) -> str:
    return spki_fingerprint(fleet.begun_key("claimed").public_key()).hex()


def test_what_was_enrolled_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, left = tmp_path / "disk", tmp_path / "left"
    folder.mkdir()
    disk = RecordedDisk(folder, tmp_path / "record")
    cuts = PowerCuts(disk)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | disk.environment
    subprocess.run([sys.executable, "-c", _WRITER, str(folder)], env=environment, check=True)
    monkeypatch.setattr(os, "fsync", lambda _file: None)  # What is left is on a disk that need not last.
    seen = 0
    for cut in cuts.at(range(len(disk.records()) + 1), list(Disk), 1):
        cut.write(left)
        if not FleetDirectory.exists(left / "fleet"):
            assert not cut.marks, cut
            continue
        known = dict(each.split() for each in cut.marks)
        with FleetDirectory.read(left / "fleet").changing() as fleet:
            assert begun(fleet) == known.get("key", begun(fleet)), cut
            for name, entry in fleet.entries.items():
                assert fleet.credential(name).serial == entry.serial, cut
                fleet.credential(name).context(fleet.anchors)
            assert len(fleet.entries) >= int(known.get("enrolled", 0)), cut
            assert known.get("enrolled") != "4" or fleet.entries["meter-0"].revoked, cut
        seen += 1
    assert seen > 30
