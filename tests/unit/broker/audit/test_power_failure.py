"""The audit log after a power failure: it is opened, goes on, and what is missing was not promised."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from broker.audit.files import opened_files
from broker.audit.verification import verify
from provisioning.directory.audit_chain import AuditHead, read_key
from tests.support.power_cuts import Disk, PowerCuts
from tests.support.programs import REPOSITORY
from tests.support.recorded_disk import RecordedDisk, listing

_MOST_BYTES, _MOST_FILES = 2000, 3
_WRITER = f"""
import sys
from pathlib import Path
from broker.audit.files import opened_files
from tests.support.recorded_disk import mark

path = Path(sys.argv[1])
files = opened_files(path / "log" / "audit.jsonl", path / "state" / "audit.key", {_MOST_BYTES}, {_MOST_FILES})
for number in range(12):
    files.append([(1_700_000_000.5, {{"event": "refused", "detail": "x" * 150}}) for _ in range(1 + number % 4)])
    mark(str(files.head))
"""


@pytest.fixture
def cuts(tmp_path: Path) -> PowerCuts:
    """What is left of a log whose writer noted each head."""
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = RecordedDisk(folder, tmp_path / "record")
    cuts = PowerCuts(disk)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | disk.environment
    subprocess.run([sys.executable, "-c", _WRITER, str(folder)], env=environment, check=True)
    (everything,) = cuts.at([len(disk.records())], [Disk.ALL], 0)
    assert {name: content for name, (_, content) in everything.tree.items()} == listing(folder), "not all is recorded"
    return cuts


def test_a_log_goes_on_after_a_power_failure_at_any_moment(
    cuts: PowerCuts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("fsync", "fdatasync"):  # What is left is on a disk that need not last.
        monkeypatch.setattr(os, name, lambda _file: None)
    left = tmp_path / "left"
    path, keyfile = left / "log" / "audit.jsonl", left / "state" / "audit.key"
    seen = 0
    for cut in cuts.at(cuts.interesting(100, 7), list(Disk), 7):
        cut.write(left)
        files = opened_files(path, keyfile, _MOST_BYTES, _MOST_FILES)
        files.append([(1_700_000_001.5, {"event": "refused", "detail": "after"})])
        files.close()
        verdict = verify(path, read_key(keyfile))
        if cut.marks:
            assert verdict.findings == [], cut
            assert verdict.head.number > AuditHead.parse(cut.marks[-1]).number, cut
        else:  # Of a log without its head nobody knows that nothing followed the first entry: that is said.
            assert all("the head is missing" in each for each in verdict.findings), cut
        seen += 1
    assert seen > 120
