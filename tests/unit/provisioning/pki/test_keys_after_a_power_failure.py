"""A private file after a power failure: there and whole, or not there, and there if its writer went on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.power_cuts import Disk, PowerCuts
from tests.support.programs import REPOSITORY
from tests.support.recorded_disk import RecordedDisk

_WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from provisioning.authorities.ceremony_transcript import Transcript
from provisioning.commands.new_file import write_new
from provisioning.pki.keys import replace_private, write_private
from provisioning.program.durable_names import make_folder
from tests.support.recorded_disk import mark

folder = Path(sys.argv[1])
make_folder(folder / "new" / "newer")
mark("new/newer")
write_private(folder / "a.key", b"first")
mark("a.key first")
replace_private(folder / "a.key", b"second")
mark("a.key second")
write_new(folder / "a.crt", b"third")
mark("a.crt third")
transcript = Transcript("a test", lambda: datetime.now(UTC), lambda _line: None)
transcript.say("fourth")
transcript.write(folder / "ceremonies" / "a.txt")
mark("ceremonies/a.txt")
"""
_WHOLE = {"a.key": {b"first", b"second"}}
"""`write_new` is for what can be made again: the others are never there in part."""


def test_what_was_written_is_there_with_its_name_and_nothing_is_there_in_part(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = RecordedDisk(folder, tmp_path / "record")
    cuts = PowerCuts(disk)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)} | disk.environment
    subprocess.run([sys.executable, "-c", _WRITER, str(folder)], env=environment, check=True)
    for cut in cuts.at(range(len(disk.records()) + 1), list(Disk), 1):
        for name in _WHOLE.keys() & cut.tree.keys():
            assert cut.tree[name][1] in _WHOLE[name], cut
        known = dict(mark.split() for mark in cut.marks if " " in mark)
        assert {name: cut.tree[name][1] for name in known} == {name: said.encode() for name, said in known.items()}, cut
        assert "new/newer" not in cut.marks or "new/newer" in cut.tree, cut
        if "ceremonies/a.txt" in cut.marks:  # The audit log confirms it from then on.
            assert (cut.tree["ceremonies/a.txt"][1] or b"").endswith(b"\nfourth\n"), cut
